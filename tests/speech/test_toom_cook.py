"""Convolutions with fewer multiplications are the convolutions."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.hifigan import Conv
from speechgpt_jax.speech.toom_cook import ToomCookConv


@pytest.mark.parametrize("steps", [1, 5, 64, 201])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 2), (7, 3), (11, 1), (11, 5)])
def test_it_is_the_convolution(kernel_size, dilation, steps):
    rng = np.random.default_rng(0)
    conv = Conv(12, 20, kernel_size, dilation=dilation, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.asarray(rng.standard_normal(20), jnp.float32)
    x = rng.standard_normal((2, steps, 12), np.float32)
    np.testing.assert_allclose(ToomCookConv(conv)(x), conv(x), atol=2e-5)
