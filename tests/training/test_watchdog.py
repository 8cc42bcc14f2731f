"""A process whose phase takes too long leaves stack traces and ends."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.training import watchdog as watchdog_module
from speechgpt_jax.training.phases import INPUT, SAVE, STEP, Phases
from speechgpt_jax.training.watchdog import HUNG_EXIT_CODE, Watchdog, watched
from tests import processes

HANGS = """
import sys, threading, time
from speechgpt_jax.training.phases import INPUT, STEP, Phases
from speechgpt_jax.training.watchdog import Watchdog, watched

def wait_forever():
    time.sleep(100)

phases = Phases()
with watched(phases, Watchdog(factor=2, at_least=0.2), sys.argv[1]):
    for step in range(1, 6):
        phases.enter(INPUT)
        phases.enter(STEP)
        time.sleep(0.05)
        phases.enter(STEP)
        phases.finish_step(step)
    wait_forever()
"""


@pytest.mark.slow
def test_traces_and_an_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANGS, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == HUNG_EXIT_CODE
    assert "wait_forever" in done.stderr
    said = re.search(r"Error: process 0 of 1 hangs: step after .*, usually (\S+) s", done.stderr)
    assert float(said[1]) >= 0.05, "the parts of a step were taken for steps"
    assert "wait_forever" in (tmp_path / "hung" / "process_0.txt").read_text()


def work(folder):
    """Works for half a second in one phase, under a limit of two."""
    watchdog_module.STOPPED_SECONDS = 1
    phases = Phases()
    with watched(phases, Watchdog(at_least=2, first=2), folder):
        phases.enter(STEP)
        (folder / "started").touch()
        while time.process_time() < 0.5:
            pass


@pytest.mark.slow
def test_the_time_in_which_a_process_is_stopped_does_not_count(tmp_path):
    process = processes.start(work, tmp_path, output=tmp_path)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and not (tmp_path / "hung").exists()


def test_limits_follow_the_median():
    watchdog = Watchdog(factor=10, at_least=5, first=100)
    assert watchdog.limit(None) == 100
    assert watchdog.limit(0.1) == 5
    assert watchdog.limit(2.0) == 20
    with pytest.raises(UserError, match="factor 1 must be above 1"):
        Watchdog(factor=1)


def test_a_quiet_run_says_where_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(watchdog_module, "QUIET_SECONDS", 0.1)
    phases = Phases()
    with watched(phases, Watchdog(at_least=0.2), tmp_path):
        phases.finish_step(7)
        phases.enter(SAVE)
        time.sleep(0.5)
    # After 0.1, 0.2 and 0.4 seconds: each time, twice as long as before.
    line = "Process 0: 0 s since step 7, now in: save."
    assert capfd.readouterr().err.splitlines() == [line] * 3


def test_a_run_that_is_alive_is_left_alone(tmp_path):
    phases = Phases()
    with watched(phases, Watchdog(at_least=0.2, first=0.2), tmp_path):
        for _ in range(10):
            phases.enter(INPUT)
            time.sleep(0.03)
            phases.enter(STEP)
    assert not list(tmp_path.iterdir())
    assert phases.median(INPUT) == pytest.approx(0.03, abs=0.02)
    assert next(iter(phases.shares())) == INPUT
    assert sum(phases.shares().values()) == pytest.approx(1)
