"""Text and unit text <-> token ids, in plain Python."""

from speechgpt_jax.tokenizer.interface import Tokenizer
from speechgpt_jax.tokenizer.patterns import any_of
from speechgpt_jax.tokenizer.sentencepiece import DEMO_TOKENIZER, SentencePieceTokenizer

__all__ = ["DEMO_TOKENIZER", "SentencePieceTokenizer", "Tokenizer", "any_of"]
