"""Vocoders with random weights, scaled so that every part contributes to the output."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig


def build(config: VocoderConfig, seed: int = 0) -> UnitVocoder:
    """A vocoder whose biases are not zero, as a trained one's."""
    rng = np.random.default_rng(seed)

    def draw(x):
        scale = 1.5 / np.prod(x.shape[:2]) ** 0.5 if x.ndim == 3 else 0.5
        return jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32)

    graph, shapes = nnx.split(nnx.eval_shape(lambda: UnitVocoder(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(draw, shapes))
