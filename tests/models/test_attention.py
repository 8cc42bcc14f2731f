"""Attention on a CPU, and the TPU kernel in interpret mode, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.models.attention import blockwise_attention, splash_attention

pytestmark = pytest.mark.slow

KERNELS = {
    "cpu": blockwise_attention,
    "tpu": functools.partial(splash_attention, interpret=True),
}


def plain_attention(query, key, value, segment_ids):
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="xla"
    )


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("platform", KERNELS)
def test_equals_plain_attention(platform, num_kv_heads):
    """Values and gradients; 150 tokens don't fill the kernels' blocks, 0 is padding."""
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (2, 150, 2, 16))
    key, value = jax.random.normal(keys[1], (2, 2, 150, num_kv_heads, 16))
    segment_ids = jnp.array([[1] * 70 + [2] * 60 + [0] * 20, [1] * 150])
    weights = jax.random.normal(keys[2], query.shape) * (segment_ids > 0)[..., None, None]

    def outputs_and_gradients(attend):
        def total(*inputs):
            heads = attend(*inputs, segment_ids)
            return jnp.sum(heads * weights), heads * (weights != 0)

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(query, key, value)

    expected = outputs_and_gradients(plain_attention)
    actual = outputs_and_gradients(KERNELS[platform])
    for ours, plain in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)
