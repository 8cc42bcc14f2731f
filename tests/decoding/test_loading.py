"""Models loaded for decoding: their dtypes, and the weights that decoding makes of them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax import checkpoints
from speechgpt_jax.checkpoints.steps import Step
from speechgpt_jax.decoding.loading import build_llama, load_llama
from speechgpt_jax.models.decoder import make_decoder
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(60, 32, 48, 2, 4, 2, 8)
Q_PROJ = ("kernel", "lora_a", "lora_b")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("lora", "int8", "in_float32"),
    [
        (None, False, set()),
        (LoraConfig(rank=2, targets=("q_proj",)), False, {f"q_proj.{name}" for name in Q_PROJ}),
        (None, True, {f"{name}.kernel" for name in PROJECTIONS}),
    ],
)
def test_weights_are_loaded_in_the_dtype_of_decoding(lora, int8, in_float32, tmp_path):
    """Decoding makes the same weights of them, bit by bit, as of float32."""
    config = dataclasses.replace(CONFIG, lora=lora)
    state = nnx.state(Llama(config, rngs=nnx.Rngs(0)))
    # New adapters would add nothing: lora_b begins at zero.
    state = jax.tree.map(lambda x: x + 0.01, state)
    parameters = jax.device_get(list(checkpoints.flatten(state).items()))
    checkpoints.save_parameters(tmp_path, parameters, {"model": dataclasses.asdict(config)})

    loaded, mesh = load_llama(tmp_path, dtype="bfloat16", int8=int8)
    assert mesh is None
    by_name = checkpoints.flatten(nnx.state(loaded))
    dtypes = {".".join(name.split(".")[-2:]): str(x.dtype) for name, x in by_name.items()}
    assert {name for name, dtype in dtypes.items() if dtype == "float32"} == in_float32
    assert {*dtypes.values()} <= {"float32", "bfloat16"}

    as_saved = checkpoints.load_model(tmp_path, build_llama)
    ours, theirs = (
        nnx.state(make_decoder(model, "bfloat16", int8=int8)) for model in (loaded, as_saved)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_weights_to_be_cast_are_read_one_at_a_time(tmp_path, monkeypatch):
    """Beside what is cast there is never more in float32 than one of them."""
    parameters = checkpoints.flatten(nnx.state(Llama(CONFIG, rngs=nnx.Rngs(0))))
    metadata = {"model": dataclasses.asdict(CONFIG)}
    checkpoints.save_parameters(tmp_path, jax.device_get(list(parameters.items())), metadata)
    largest = max(x.nbytes for x in parameters.values())
    restore, live = Step._restore, []

    def restored(step, targets):
        arrays = restore(step, targets)
        live.append(sum(x.nbytes for x in jax.live_arrays() if x.dtype == "float32"))
        return arrays

    monkeypatch.setattr(Step, "_restore", restored)
    before = sum(x.nbytes for x in jax.live_arrays() if x.dtype == "float32")
    load_llama(tmp_path, dtype="bfloat16")
    assert len(live) == len(parameters) and max(live) - before <= largest


def test_a_cpu_loads_float32_by_default(tmp_path):
    parameters = checkpoints.flatten(nnx.state(Llama(CONFIG, rngs=nnx.Rngs(0))))
    metadata = {"model": dataclasses.asdict(CONFIG)}
    assert CONFIG.dtype == "bfloat16"
    checkpoints.save_parameters(tmp_path, jax.device_get(list(parameters.items())), metadata)
    loaded, _ = load_llama(tmp_path)
    assert {str(x.dtype) for x in jax.tree.leaves(nnx.state(loaded))} == {"float32"}
