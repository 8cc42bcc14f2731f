"""Devices of one core: a program takes one core at a time, and units stay what they were."""

import functools
import os
import time

import jax
import numpy as np
import pytest

from speechgpt_jax.speech.cpu import devices as one_core
from speechgpt_jax.speech.encoder import speech2unit
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit


@functools.partial(jax.jit, compiler_options=one_core.OPTIONS)
def products(x):
    return jax.lax.fori_loop(0, 60, lambda _, y: y @ x, x)


def test_a_program_takes_no_more_than_one_core_and_each_device_is_another():
    for number in range(2):
        x = jax.device_put(np.eye(768, dtype=np.float32), one_core.device(number))
        products(x).block_until_ready()  # Compiles.
        start, of_all_threads = time.perf_counter(), time.process_time()
        products(x).block_until_ready()
        took, of_all_threads = time.perf_counter() - start, time.process_time() - of_all_threads
        assert of_all_threads < 1.4 * took  # With two threads 1.9 times.
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
