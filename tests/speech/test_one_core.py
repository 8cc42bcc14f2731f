"""Devices of one core: one thread computes a program of theirs, and units stay what they were."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from speechgpt_jax.speech import one_core, speech2unit
from speechgpt_jax.speech.speech2unit import Speech2Unit


@functools.partial(jax.jit, compiler_options=one_core.OPTIONS)
def products(x):
    return jax.lax.fori_loop(0, 60, lambda _, y: y @ x, x)


def cpu_times() -> dict[str, int]:
    """Nanoseconds that each thread has computed."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}


def test_one_thread_computes_a_program_and_each_device_has_its_own():
    for number in range(2):
        x = jax.device_put(np.eye(768, dtype=np.float32), one_core.device(number))
        products(x).block_until_ready()  # Compiles.
        before = cpu_times()
        products(x).block_until_ready()
        taken = {task: time - before.get(task, 0) for task, time in cpu_times().items()}
        assert max(taken.values()) > 0.9 * sum(taken.values())
    assert one_core.device(0) is one_core.device(0) is not one_core.device(1)


@pytest.mark.parametrize("given", [None, "3"])
def test_making_a_device_leaves_the_environment_as_it_was(given, monkeypatch):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    if given:
        monkeypatch.setenv("PJRT_NPROC", given)
    before = dict(os.environ)
    assert one_core.device.__wrapped__(0).platform == "cpu"
    assert dict(os.environ) == before


def test_units_are_those_of_programs_that_have_all_cores(monkeypatch):
    ears = Speech2Unit.from_pretrained()
    rng = np.random.default_rng(0)
    wavs = [rng.standard_normal(16_000 * n).astype(np.float32) / 9 for n in (1, 3, 35, 30, 2)]
    monkeypatch.setattr(speech2unit, "cores", lambda: 1)
    expected = ears.cluster_ids(wavs)
    monkeypatch.setattr(speech2unit, "cores", lambda: 2)
    for ids, of_all in zip(ears.cluster_ids(wavs), expected, strict=True):
        np.testing.assert_array_equal(ids, of_all)
