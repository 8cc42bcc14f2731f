"""The language model: LLaMA and its layers."""
