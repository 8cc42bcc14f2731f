"""Strassen's products are those of matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.cpu import strassen
from speechgpt_jax.speech.encoder.front_ends import gelu


def test_a_product_is_that_of_the_matrices():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (6, 10)), rng.integers(-9, 9, (10, 4))
    ours = strassen.product(strassen.cut(jnp.array(a)), strassen.evaluated(jnp.array(b)))
    np.testing.assert_array_equal(strassen.join(ours), a @ b)


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 7, 8)], ids=["even", "odd"])
def test_an_mlp_is_that_of_its_layers(shape):
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)]
    for layer in layers:
        layer.bias[...] = rngs.normal(layer.bias.shape)
    x = rngs.normal(shape)
    expected = layers[1](gelu(layers[0](x)))
    np.testing.assert_allclose(strassen.StrassenMlp(*layers, gelu)(x), expected, atol=1e-5)
