"""MFU against counts by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from speechgpt_jax.training.utilization import peak_flops, training_flops_per_token
from tests.sizes import llama


@dataclasses.dataclass
class Chip:
    device_kind: str


def test_flops_of_7b():
    config = llama("llama_7b", 32000)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
    attention = 32 * 2 * 1024 * 4096
    full = training_flops_per_token(config, 1024, "all")
    assert full == 6 * (weights + attention)
    # Frozen weights have no gradient: two passes instead of three.
    assert training_flops_per_token(config, 1024, "lora") == pytest.approx(full * 2 / 3)


def test_a_step_of_13b_can_count_its_flops():
    flops = training_flops_per_token(llama("llama_13b", 33006), 1024, "all")
    counted = jax.jit(lambda tokens: tokens * flops)(jnp.int32(768 * 1024))
    assert float(counted) == pytest.approx(768 * 1024 * flops)


def test_peaks():
    assert peak_flops([Chip("TPU v5 lite")] * 256) == 256 * 197e12
    assert peak_flops([Chip("TPU v5")]) == 459e12, "the longest name that fits"
    assert peak_flops([Chip("NVIDIA H100 80GB HBM3")] * 8) == 8 * 989e12
    assert peak_flops(jax.devices("cpu")) is None
