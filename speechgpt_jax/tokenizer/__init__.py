"""Text and unit text <-> token ids, in plain Python."""

from speechgpt_jax.tokenizer.hugging_face import HuggingFaceTokenizer
from speechgpt_jax.tokenizer.interface import Tokenizer
from speechgpt_jax.tokenizer.patterns import any_of
from speechgpt_jax.tokenizer.sentencepiece import DEMO_TOKENIZER, SentencePieceTokenizer
from speechgpt_jax.tokenizer.stream import TextStream

__all__ = [
    "DEMO_TOKENIZER",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "TextStream",
    "Tokenizer",
    "any_of",
]
