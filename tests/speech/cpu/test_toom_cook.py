"""Toom and Cook's convolutions against plain ones."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.cpu.toom_cook import StridedToomCookConv, ToomCookConv
from speechgpt_jax.speech.encoder import front_ends as hubert_front_ends
from speechgpt_jax.speech.vocoder.hifigan import Conv

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("steps", [1, 5, 64, 201])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 2), (7, 3), (11, 1), (11, 5)])
def test_same_as_the_convolution(kernel_size, dilation, steps):
    rng = np.random.default_rng(0)
    conv = Conv(12, 20, kernel_size, dilation=dilation, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.asarray(rng.standard_normal(20), jnp.float32)
    x = rng.standard_normal((2, steps, 12), np.float32)
    np.testing.assert_allclose(ToomCookConv(conv)(x), conv(x), atol=2e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("steps", [3, 4, 64, 201])
def test_same_as_the_strided_convolution(steps, bias):
    conv = hubert_front_ends.Conv(12, 20, 3, 2, bias, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, steps, 12), np.float32)
    np.testing.assert_allclose(StridedToomCookConv(conv)(x), conv(x), atol=2e-5)
