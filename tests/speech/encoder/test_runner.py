"""Programs get the model, or a layer of it, and arrays, in the precision of the model."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.cpu import devices
from speechgpt_jax.speech.cpu.devices import Parallelism
from speechgpt_jax.speech.encoder.hubert import EncoderLayer, Hubert
from speechgpt_jax.speech.encoder.runner import Runner
from tests.speech.encoder.test_stages import WAVE


@pytest.fixture(scope="module")
def hubert():
    return Hubert(WAVE, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_float32_is_multiplied_as_float32_on_accelerators(hubert):
    precisions = []

    def multiply(hubert, x):
        precisions.append(jax.config.jax_default_matmul_precision)
        return x @ x

    Runner(hubert).run(multiply, np.ones((2, 2)))
    assert precisions == ["highest"]


@pytest.mark.parametrize(("workers", "items"), [(1, 3), (2, 1), (2, 2), (2, 5), (3, 2)])
def test_map_keeps_the_order_and_uses_single_cores_if_there_is_work_for_all(
    workers, items, hubert, monkeypatch
):
    used = []
    compiler_options = devices.compiler_options

    def watched(dtype, *, single_core):
        used.append(single_core)
        return compiler_options(dtype, single_core=single_core)

    monkeypatch.setattr(devices, "compiler_options", watched)
    runner = Runner(hubert, Parallelism(workers, rows=1))
    results = runner.map(lambda hubert, x: 2 * x, lambda i: (np.float32(i),), range(items))
    assert results == [2 * i for i in range(items)]
    assert used == [items >= workers > 1] * items


def test_threads_share_the_copies_of_the_model(hubert, monkeypatch):
    copied = []

    def single_core_device(number):
        copied.append(number)
        time.sleep(0.02)

    monkeypatch.setattr(devices, "single_core_device", single_core_device)
    runner = Runner(hubert, Parallelism(2, rows=1))
    with ThreadPoolExecutor(4) as pool:
        queues = list(pool.map(lambda _: runner._shared_huberts(), range(4)))
    assert copied == [0, 1]
    assert all(queue is queues[0] for queue in queues)


def test_a_layer_instead_of_the_model(hubert):
    def bias(layer):
        assert isinstance(layer, EncoderLayer)
        return layer.output_dense.bias[...] + 1

    hubert.layers[1].output_dense.bias[...] = np.ones(WAVE.hidden_size, np.float32)
    (result,) = Runner(hubert).map(bias, lambda item: (), [None], layer=1)
    np.testing.assert_array_equal(result, np.full(WAVE.hidden_size, 2.0))
