"""Dense with its adapter against PEFT, and layers that the tests of whole models don't cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.models import layers
from speechgpt_jax.models.layers import Dense, LoraConfig


@pytest.mark.slow
def test_lora_equals_peft():
    import peft
    import torch

    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False)),
        peft.LoraConfig(r=3, lora_alpha=12, lora_dropout=0.1, target_modules=["0"]),
    ).eval()
    linear = theirs.base_model.model[0]
    torch.nn.init.normal_(linear.lora_B.default.weight)
    lora = LoraConfig(rank=3, alpha=12, dropout=0.1)
    ours = Dense(6, 5, ("embed", "heads"), lora=lora, rngs=nnx.Rngs(0))
    ours.kernel[...] = linear.base_layer.weight.detach().numpy().T
    ours.lora_a[...] = linear.lora_A.default.weight.detach().numpy().T
    ours.lora_b[...] = linear.lora_B.default.weight.detach().numpy().T
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)


@pytest.mark.slow
def test_dropout_is_only_before_the_adapter_and_keeps_the_mean():
    lora = LoraConfig(rank=4, alpha=4, dropout=0.25)
    dense = Dense(8, 8, ("embed", "mlp"), lora=lora, rngs=nnx.Rngs(0))
    x = jnp.ones((20_000, 8))
    np.testing.assert_array_equal(dense(x, nnx.Rngs(dropout=0)), dense(x))
    dense.lora_b[...] = jax.random.normal(jax.random.key(0), (4, 8))
    dropped = dense(x, nnx.Rngs(dropout=0))
    assert np.std(dropped, axis=0).min() > 0
    np.testing.assert_allclose(dropped.mean(axis=0), dense(x)[0], atol=0.05)


def test_norm_of_bfloat16_is_taken_in_float32():
    norm = layers.RMSNorm(512, 1e-5)
    x = jax.random.normal(jax.random.key(0), (4, 512)).astype(jnp.bfloat16)
    expected = norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(norm(x), expected)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": 0}, "rank 0 must be at least 1"),
        ({"dropout": 1.0}, "dropout 1.0 must be at least 0 and below 1"),
        ({"targets": ("query",)}, r"Unknown LoRA targets \['query'\]; choose from q_proj"),
    ],
)
def test_impossible_adapters(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


@pytest.mark.slow
def test_int8_kernels_are_within_half_a_step_and_keep_their_gradient():
    dense = Dense(64, 8, ("embed", "mlp"), lora=LoraConfig(rank=2), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    kernel, exact = dense.kernel[...], dense(x)
    dense.quantize()
    assert dense.kernel.dtype == jnp.int8 and dense.kernel_scale.shape == (1, 8)
    rounded = dense.kernel * dense.kernel_scale
    half_a_step = jnp.abs(kernel).max(axis=0) / 127 / 2
    assert (jnp.abs(rounded - kernel) <= half_a_step * 1.001).all()
    np.testing.assert_allclose(dense(x), exact, atol=0.02)
    gradient = jax.grad(lambda x: jnp.sum(dense(x)))(x)
    np.testing.assert_allclose(gradient, jnp.ones((5, 8)) @ rounded.T, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_merging_an_adapter_into_an_int8_kernel_gives_floats_again():
    lora = LoraConfig(rank=2)
    dense = Dense(16, 8, ("embed", "mlp"), bias=True, lora=lora, rngs=nnx.Rngs(0))
    dense.bias[...] = jnp.arange(8.0)
    dense.lora_b[...] += 0.1
    dense.quantize()
    x = jax.random.normal(jax.random.key(1), (5, 16))
    expected = dense(x)
    dense.merge_adapter()
    assert dense.kernel.dtype == jnp.float32
    np.testing.assert_allclose(dense(x), expected, rtol=1e-5, atol=1e-6)
