"""Folders of saved models: round trips, and refused parameters, tensors and files."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import pretrained


def build() -> nnx.Module:
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_saved_and_loaded(dtype, tmp_path):
    model = build()
    pretrained.save_model(tmp_path / "new", model, {"size": 3}, dtype)
    assert pretrained.load_fields(tmp_path / "new") == {"size": 3}
    loaded = pretrained.load_model(tmp_path / "new", build)
    assert loaded.kernel.dtype == jnp.float32
    np.testing.assert_array_equal(loaded.kernel[...], model.kernel[...].astype(dtype))


def test_a_number_too_large_for_the_type_is_refused(tmp_path):
    model = build()
    model.bias[...] = jnp.array([0.0, -1e6])
    with pytest.raises(UserError, match=r"bias holds 1e\+06, too large for float16"):
        pretrained.save_model(tmp_path, model, {}, np.float16)
    assert not list(tmp_path.iterdir())
    pretrained.save_model(tmp_path, model, {}, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"kernel": np.zeros((3, 2), np.int8), "bias": np.zeros(2, "f4")}, "kernel is int8"),
        ({"kernel": np.zeros((3, 2), jnp.bfloat16), "bias": np.zeros(2, "f4")}, "type 'BF16'"),
        ({"kernel": np.zeros((3, 2), "f4")}, "does not fit .*bias"),
        ({"kernel": np.zeros((2, 3), "f4"), "bias": np.zeros(2, "f4")}, r"does not fit .*\(2, 3\)"),
    ],
)
def test_other_tensors_are_refused(tensors, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(UserError, match=message):
        pretrained.load_model(tmp_path, build)


@pytest.mark.parametrize("data", [None, b"", b"no tensors", b"\xff" * 20])
def test_missing_and_damaged_files_are_refused(data, tmp_path):
    if data is not None:
        (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="missing or damaged"):
        pretrained.load_model(tmp_path, build)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "has no config.json"), (b"{", "is not JSON"), (b"[1]", "holds a JSON list")],
)
def test_missing_and_damaged_configurations_are_refused(data, message, tmp_path):
    if data is not None:
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=message):
        pretrained.load_fields(tmp_path)
