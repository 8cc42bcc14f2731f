"""The LLaMA sizes of gin/models, for tests and benchmarks."""

from speechgpt_jax import gin_utils
from speechgpt_jax.models.llama import LlamaConfig


def llama(name: str, vocab_size: int) -> LlamaConfig:
    """llama("tiny", 1706) is the model of gin/models/tiny.gin with 1706 tokens."""
    gin_utils.parse([f"gin/models/{name}.gin"], [f"LlamaConfig.vocab_size = {vocab_size}"])
    return gin_utils.call(LlamaConfig)
