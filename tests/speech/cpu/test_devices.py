"""Devices of one core: each has one thread, and units do not depend on how programs run."""

import functools
import os
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from speechgpt_jax.speech.cpu import devices
from speechgpt_jax.speech.cpu.devices import Parallelism
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit


def num_xla_threads() -> int:
    """Threads that compute for XLA's CPU devices in this process."""
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("XLAEigen" in name for name in names)


def test_a_device_has_one_thread():
    before = num_xla_threads()
    made = [devices._create_device.__wrapped__(number) for number in range(2)]
    assert num_xla_threads() - before == 2
    assert made[0] is not made[1]


def test_a_device_is_made_once_per_number():
    made = [devices.single_core_device(number) for number in (0, 1, 0)]
    assert made[0] is made[2] is not made[1]


@pytest.mark.parametrize("given", [None, "3"])
def test_making_a_device_leaves_the_environment_unchanged(given, monkeypatch):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    if given:
        monkeypatch.setenv("PJRT_NPROC", given)
    before = dict(os.environ)
    assert devices._create_device.__wrapped__(0).platform == "cpu"
    assert dict(os.environ) == before


def test_threads_make_one_device_after_another(monkeypatch):
    def make_cpu_client(asynchronous):
        threads = os.environ["PJRT_NPROC"]
        time.sleep(0.02)
        assert os.environ["PJRT_NPROC"] == threads == "1"
        return types.SimpleNamespace(devices=lambda: [object()])

    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setattr(devices.xla_client, "make_cpu_client", make_cpu_client)
    monkeypatch.setattr(
        devices, "_create_device", functools.cache(devices._create_device.__wrapped__)
    )
    with ThreadPoolExecutor(4) as pool:
        first, second, again, _ = pool.map(devices.single_core_device, (0, 1, 0, 1))
    assert first is again is not second
    assert "PJRT_NPROC" not in os.environ


@pytest.mark.slow
def test_units_are_the_same_in_one_program_or_several_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    wavs = [rng.standard_normal(16_000 * n).astype(np.float32) / 9 for n in (1, 3, 35, 30, 2)]
    cluster_ids = []
    for workers in (1, 2):
        monkeypatch.setattr(devices, "parallelism", lambda n=workers: Parallelism(n, rows=1))
        cluster_ids.append(Speech2Unit.from_pretrained().cluster_ids(wavs))
    for one, several in zip(*cluster_ids, strict=True):
        np.testing.assert_array_equal(several, one)
