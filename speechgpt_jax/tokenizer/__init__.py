"""Text and unit text <-> token ids, in plain Python."""

from speechgpt_jax.tokenizer.sentencepiece import DEMO_TOKENIZER, Tokenizer, any_of

__all__ = ["DEMO_TOKENIZER", "Tokenizer", "any_of"]
