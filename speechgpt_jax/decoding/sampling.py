"""Sampling of the next token from its logits."""

import dataclasses

import jax
import jax.numpy as jnp

from speechgpt_jax.limits import check_number


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature, then the `top_k` most likely tokens, then the nucleus of those.

    The defaults are those of the released SpeechGPT.

    Attributes:
      temperature: divides the logits; 0 always takes the most likely token.
      top_k: number of most likely tokens that are kept; 0 keeps all.
      top_p: of those, the fewest whose probabilities add up to this (Holtzman et al. 2020).
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.8

    def __post_init__(self):
        check_number("temperature", self.temperature, at_least=0)
        check_number("top_k", self.top_k, at_least=0)
        check_number("top_p", self.top_p, above=0, at_most=1)

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Logits [..., V] -> token ids int32 [...]."""
        if self.temperature == 0 or self.top_k == 1:
            return jnp.argmax(logits, axis=-1)
        # Sorted by decreasing probability, which makes the nucleus a prefix.
        candidates, tokens = jax.lax.top_k(
            logits / self.temperature, min(self.top_k or logits.shape[-1], logits.shape[-1])
        )
        probabilities = jax.nn.softmax(candidates)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        candidates = jnp.where(mass_before < self.top_p, candidates, -jnp.inf)
        drawn = jax.random.categorical(key, candidates)
        return jnp.take_along_axis(tokens, drawn[..., None], axis=-1)[..., 0]


GREEDY = Sampling(temperature=0.0)
