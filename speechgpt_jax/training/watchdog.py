"""Ends a run that hangs, so that a scheduler can restart it from its last checkpoint.

A process in a deadlock, or a file system that doesn't answer, leaves all processes of a run
waiting in a collective operation, without a message and for as long as the machines are paid for.
A process that is stopped sends no heartbeat either, by which JAX ends the others sooner.
"""

import contextlib
import dataclasses
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
from etils import epath

from speechgpt_jax.files import best_effort, write_text
from speechgpt_jax.limits import check_number
from speechgpt_jax.training.phases import Phases

# Differs from those of a finished run and of one that saved after SIGTERM, so a launcher counts it
# as a crash towards max_restarts.
HUNG_EXIT_CODE = 76
# Silence after which a line says where the run is, doubled after each line.
QUIET_SECONDS = 60
# Time between two looks of the watchdog from which on it doesn't count: the process was stopped.
STOPPED_SECONDS = 30
# How long the traces may take on their way to the output folder, which may be what hangs.
WRITE_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Watchdog:
    """Limits on the duration of the phases of a run.

    Attributes:
      factor: limit of a phase, as a multiple of its median duration.
      at_least: the smallest such limit, in seconds.
      first: limit in seconds while fewer than three durations of the phase are known: of the start,
        which reads and checks the data, restores and compiles, and of the first saves.
    """

    factor: float = 20.0
    at_least: float = 300.0
    first: float = 3600.0

    def __post_init__(self):
        check_number("Watchdog.factor", self.factor, above=1)
        check_number("Watchdog.at_least", self.at_least, above=0)
        check_number("Watchdog.first", self.first, above=0)

    def limit(self, median: float | None) -> float:
        """Seconds that a phase of this median may take."""
        return self.first if median is None else max(self.at_least, self.factor * median)


@contextlib.contextmanager
def watched(phases: Phases, watchdog: Watchdog, output_dir: str | os.PathLike) -> Iterator[None]:
    """Watches the phases of the block in a thread.

    If one takes longer than its limit, not counting the time in which the whole process was stopped
    (SIGSTOP, a computer that sleeps), the stack traces of all threads are written to stderr and to
    OUTPUT_DIR/hung/process_<N>.txt, and the process exits at once with HUNG_EXIT_CODE.
    """
    ended = threading.Event()
    folder = epath.Path(output_dir) / "hung"
    thread = threading.Thread(target=_watch, args=(phases, watchdog, folder, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(phases: Phases, watchdog: Watchdog, folder: epath.Path, ended: threading.Event) -> None:
    interval = min(1.0, watchdog.at_least / 4, watchdog.first / 4)
    quiet, step_ended = float(QUIET_SECONDS), phases.step_ended
    current, looked, stopped = phases.current, time.monotonic(), 0.0
    while not ended.wait(interval):
        now = time.monotonic()
        if phases.current != current:
            current, stopped = phases.current, 0.0
        if now - looked > STOPPED_SECONDS:
            stopped += now - max(looked, current[1])
        looked = now
        name, since = current
        median = phases.median(name)
        seconds = now - since - stopped
        if seconds > watchdog.limit(median) and current == phases.current:
            usual = "" if median is None else f", usually {median:.2g} s"
            _end(f"{name} after step {phases.step} takes {seconds:.0f} s{usual}", folder)
        if phases.step_ended != step_ended:
            quiet, step_ended = float(QUIET_SECONDS), phases.step_ended
        elif now - step_ended > quiet:
            print(
                f"Process {jax.process_index()}: {now - step_ended:.0f} s since step"
                f" {phases.step}, now in: {name}.",
                file=sys.stderr,
                flush=True,
            )
            quiet *= 2


def _end(problem: str, folder: epath.Path) -> None:
    """Writes the traces of all threads, then exits."""
    index = jax.process_index()
    file = folder / f"process_{index}.txt"
    with tempfile.TemporaryFile("w+") as traces:
        faulthandler.dump_traceback(traces)
        traces.seek(0)
        text = traces.read()
    print(
        f"{text}Error: process {index} of {jax.process_count()} hangs: {problem}. Stack traces of"
        f" all its threads are above and in {file}. Restart all processes: the same command resumes"
        " from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    writer = threading.Thread(target=_write, args=(file, f"{problem}\n\n{text}"), daemon=True)
    writer.start()
    writer.join(WRITE_SECONDS)
    os._exit(HUNG_EXIT_CODE)


def _write(file: epath.Path, text: str) -> None:
    with best_effort(file):
        write_text(file, text)
