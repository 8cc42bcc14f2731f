"""Sampling of the next token from its logits, with settings that may differ from row to row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from speechgpt_jax.decoding.defaults import LARGEST_TOP_K, TOP_K, TOP_P
from speechgpt_jax.limits import check_number

# Rows whose `top_k` is at most this need no sort of the whole vocabulary.
FEW = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Repetition penalty, temperature, then the most likely tokens by `top_k`, `top_p` and `min_p`.

    The defaults are those of the released SpeechGPT. The order is that of `transformers`.

    Attributes:
      temperature: divides the logits; 0 always takes the most likely token.
      top_k: number of most likely tokens that are kept; 0 keeps all.
      top_p: the fewest of those whose probabilities add up to this (Holtzman et al. 2020).
      min_p: tokens less likely than this times the most likely one are dropped (Nguyen et
        al. 2024).
      repetition_penalty: divides positive logits of tokens in the prompt or the answer, and
        multiplies negative ones (Keskar et al. 2019).
    """

    temperature: float = 0.7
    top_k: int = TOP_K
    top_p: float = TOP_P
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check_number("temperature", self.temperature, at_least=0)
        check_number("top_k", self.top_k, at_least=0, at_most=LARGEST_TOP_K)
        check_number("top_p", self.top_p, above=0, at_most=1)
        check_number("min_p", self.min_p, at_least=0, at_most=1)
        check_number("repetition_penalty", self.repetition_penalty, above=0)

    def arrays(self) -> "SamplingArrays":
        """The settings of one row, as scalars."""
        return SamplingArrays(
            temperature=np.float32(self.temperature),
            top_k=np.int32(self.top_k),
            top_p=np.float32(self.top_p),
            min_p=np.float32(self.min_p),
            repetition_penalty=np.float32(self.repetition_penalty),
        )


GREEDY = Sampling(temperature=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingArrays:
    """The fields of `Sampling` for each row, [B]."""

    temperature: jax.Array | np.float32
    top_k: jax.Array | np.int32
    top_p: jax.Array | np.float32
    min_p: jax.Array | np.float32
    repetition_penalty: jax.Array | np.float32


def penalize(
    logits: jax.Array,  # [B, V]
    seen: jax.Array,  # bool [B, V]
    penalty: jax.Array,  # [B]
) -> jax.Array:
    """Logits [B, V] with the repetition penalty on tokens that were seen."""
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: jax.Array,  # [B, V]
    sampling: SamplingArrays,
    keys: jax.Array,  # [B] PRNG keys
) -> jax.Array:
    """Token ids int32 [B]; a row's draw depends on nothing of the others."""
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    is_greedy = (sampling.temperature == 0) | (sampling.top_k == 1)
    is_few = is_greedy | ((sampling.top_k > 0) & (sampling.top_k <= FEW))
    # All branches draw the same token for a row, so the other rows of the batch can't change it.
    drawn = jax.lax.switch(
        2 - jnp.all(is_greedy).astype(int) - jnp.all(is_few).astype(int),
        (
            lambda: likeliest,
            lambda: _draw(logits, sampling, keys, min(FEW, logits.shape[-1])),
            lambda: _draw(logits, sampling, keys, logits.shape[-1]),
        ),
    )
    return jnp.where(is_greedy, likeliest, drawn)


def _draw(logits, sampling, keys, number):
    temperature = jnp.where(sampling.temperature == 0, 1.0, sampling.temperature)
    top_k = jnp.where(sampling.top_k == 0, number, sampling.top_k)
    # Sorted by decreasing probability, which makes the nucleus a prefix.
    candidates, tokens = jax.lax.top_k(logits / temperature[:, None], number)
    is_kept = jnp.arange(number) < top_k[:, None]
    probabilities = jax.nn.softmax(jnp.where(is_kept, candidates, -jnp.inf))
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    is_kept = mass_before < sampling.top_p[:, None]
    is_kept &= probabilities >= sampling.min_p[:, None] * probabilities[:, :1]
    mass = jnp.cumsum(jnp.where(is_kept, probabilities, 0), axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)[:, None]
    drawn = jnp.argmax(mass > uniform * mass[:, -1:], axis=-1)
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]
