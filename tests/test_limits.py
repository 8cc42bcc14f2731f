"""Configured values out of their range are refused where the configuration is made."""

import dataclasses
import math

import pytest

from speechgpt_jax.checkpoints import Keep
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_choice, check_memory, check_number, is_within
from speechgpt_jax.models.layers import LinearRopeScaling, Llama3RopeScaling, LoraConfig
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.training.inputs import load_host_batches, load_host_held_out
from speechgpt_jax.training.optimizer import AdamW, Guard
from speechgpt_jax.training.stage import Stage
from tests.sizes import llama

TINY = llama("tiny", 1706)
NOT_FINITE = (math.nan, math.inf, -math.inf)


def stage(**changes):
    fields = {
        "model": TINY,
        "optimizer": AdamW(1e-3),
        "steps": 4,
        "trainable": "all",
        "frozen_dtype": "float32",
        "accumulation": 1,
        "loss_columns": 8192,
        "guard": None,
        "xla_options": None,
        "seed": 0,
    }
    return Stage(**fields | changes)


def changed(**changes):
    return dataclasses.replace(TINY, **changes)


def llama3_scaling(**changes):
    fields = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0}
    return Llama3RopeScaling(**{"original_length": 8192} | fields | changes)


def batches(**changes):
    return load_host_batches("none", **{"batch_size": 8, "sequence_length": 8} | changes)


def test_limits_are_printed_with_all_digits():
    with pytest.raises(UserError, match=r"context 5000000 must be at least 2 and at most 1048576"):
        check_number("context", 5_000_000, at_least=2, at_most=2**20)
    assert not is_within(10**400, at_most=65_535)


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (
            lambda **x: AdamW(**{"learning_rate": 1.0} | x),
            "learning_rate",
            (-1e-3, 1e39, *NOT_FINITE),
        ),
        (lambda **x: AdamW(1.0, **x), "warmup", (-0.1, 1.0, 2, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "b1", (-0.1, 1.0, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "b2", (-0.1, 1.0, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "eps", (0.0, -1e-8, 1e-300, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "weight_decay", (-0.1, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "clip_norm", (0.0, -1.0, *NOT_FINITE)),
        (lambda **x: AdamW(1.0, **x), "schedule", ("cosin", "")),
        (lambda **x: AdamW(1.0, **x), "moments_dtype", ("float16", "f32")),
        (Guard, "spike", (1.0, 0.5, *NOT_FINITE)),
        (Guard, "patience", (-1,)),
        (stage, "steps", (0, -1, 2**31)),
        (stage, "accumulation", (0, -1)),
        (stage, "loss_columns", (0, -1)),
        (stage, "seed", (-1, 2**32)),
        (batches, "batch_size", (0, -8)),
        (batches, "sequence_length", (0, -1)),
        (batches, "num_readers", (0, -1)),
        (changed, "vocab_size", (0, -1)),
        (changed, "num_kv_heads", (0, -4)),
        (changed, "head_dim", (0, 63)),
        (changed, "rope_theta", (0.0, *NOT_FINITE)),
        (changed, "dtype", ("float8", "bf16")),
        (changed, "remat", ("some",)),
        (LinearRopeScaling, "factor", (0.0, -1.0, *NOT_FINITE)),
        (llama3_scaling, "factor", (0.0, -1.0, *NOT_FINITE)),
        (llama3_scaling, "low_frequency_factor", (0.0, -1.0, *NOT_FINITE)),
        (llama3_scaling, "high_frequency_factor", (1.0, 0.5, *NOT_FINITE)),
        (llama3_scaling, "original_length", (0, -1)),
        (LoraConfig, "rank", (0, -1)),
        (LoraConfig, "alpha", (0.0, 1e39, 10**400, *NOT_FINITE)),
        (LoraConfig, "dropout", (-0.1, 1.0, *NOT_FINITE)),
        (MeshConfig, "slices", (0, -1)),
        (Keep, "last", (0, -1)),
        (Keep, "every", (0, -1)),
        (Sampling, "temperature", (-1.0, *NOT_FINITE)),
        (Sampling, "top_k", (-1,)),
        (Sampling, "top_p", (0.0, 2.0, *NOT_FINITE)),
    ],
)
def test_illegal_values(make, name, values):
    for value in values:
        with pytest.raises(UserError, match=name) as error:
            make(**{name: value})
        assert str(value) in str(error.value)


@pytest.mark.parametrize("load", [load_host_batches, load_host_held_out])
def test_a_batch_beyond_the_memory_is_refused_before_the_data_is_read(load):
    message = r"^batch_size 1000000000: the data of one batch would take 38,147 GiB, and this comp"
    with pytest.raises(UserError, match=message) as error:
        load("none", batch_size=10**9, sequence_length=2**11)
    largest = int(str(error.value).partition("at most ")[2].partition(",")[0])
    with pytest.raises(UserError, match="none"):  # It fits.
        load("none", batch_size=largest // 8 * 8, sequence_length=2**11)


def test_a_single_example_beyond_the_memory():
    with pytest.raises(UserError, match=r"^batch_size 8: even one example .* 1,024 GiB, .*shorter"):
        check_memory("batch_size", 8, 8 * 2**40)


def test_limits():
    check_number("x", 1, at_least=1, at_most=1)
    check_choice("x", "a", {"a": 1})
    assert is_within(0.5, above=0, below=1)
    assert not is_within(1, above=0, below=1)
    with pytest.raises(UserError, match=r"^x 1.5 must be at least 0 and below 1\.$"):
        check_number("x", 1.5, at_least=0, below=1)
    with pytest.raises(UserError, match=r"^x nan must be finite\.$"):
        check_number("x", math.nan)
    with pytest.raises(UserError, match=r"^x inf must be finite and above 0\.$"):
        check_number("x", math.inf, above=0)
    with pytest.raises(UserError, match=r"^x 1e\+39 must be above 0 and at most 3\.4e\+38\.$"):
        check_number("x", 1e39, above=0)
    with pytest.raises(UserError, match=r"^x 1e-60 must be above 0 and at least 1\.2e-38 and at "):
        check_number("x", 1e-60, above=0)
    with pytest.raises(UserError, match=r"^x 10{400} must be at most 2147483647\.$"):
        check_number("x", 10**400)
    with pytest.raises(UserError, match=r"^x 'c' must be one of a, b\.$"):
        check_choice("x", "c", ("a", "b"))
