"""The language model: layers and LLaMA."""
