"""Work in a process for each core: the same units, and no process that outlives the first one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from speechgpt_jax.speech import speech2unit
from speechgpt_jax.speech.processes import Processes
from speechgpt_jax.speech.speech2unit import Speech2Unit

ROOT = Path(__file__).parents[2]
ORPHANS = """
import signal
from speechgpt_jax.speech.processes import Processes
from speechgpt_jax.speech.speech2unit import cores
from tests.speech.test_processes import process_number

if __name__ == "__main__":
    print(Processes(cores)(process_number), flush=True)
    signal.pause()
"""


def process_number(made) -> int:
    return os.getpid()


def given(made, more=0) -> int:
    return made + more


def fail(made):
    raise ValueError(f"{made} won't do")


def test_a_process_has_one_core_and_what_was_made_there():
    processes = Processes(speech2unit.cores)
    assert not processes.started
    assert processes(given, 4) == 5 and processes.started
    assert processes(process_number) != os.getpid()
    with pytest.raises(ValueError, match="1 won't do"):
        processes(fail)


def test_long_work_is_done_in_processes_and_heard_alike(monkeypatch):
    monkeypatch.setattr(speech2unit, "cores", lambda: 2)
    ears = Speech2Unit.with_processes(Speech2Unit.from_pretrained)
    rng = np.random.default_rng(0)
    wavs = [rng.standard_normal(16_000 * n).astype(np.float32) / 9 for n in (1, 3, 35, 30, 2)]
    here = ears.cluster_ids(wavs)
    assert not ears.processes.started
    monkeypatch.setattr(speech2unit, "LONG", 0)
    for ids, expected in zip(ears.cluster_ids(wavs), here, strict=True):
        np.testing.assert_array_equal(ids, expected)
    assert ears.processes.started


def test_processes_end_with_the_first_one_even_if_it_is_killed(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=-1, env=environment) as first:
        child = int(first.stdout.readline())
        os.kill(child, 0)
        first.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
