"""SIGTERM and Ctrl-C during training: the run saves its state, then exits."""

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

import jax

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.training.progress import print_once


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """A list to which the first SIGTERM or SIGINT is appended; the second one acts as usual.

    With several processes the list stays empty: JAX itself handles SIGTERM and informs the others.
    """
    received = []

    def remember(number, _):
        received.append(signal.Signals(number))
        for stop, handler in previous.items():
            signal.signal(stop, handler)

    stops = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    previous = {stop: signal.signal(stop, remember) for stop in stops}
    try:
        yield received
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def leave(stop: signal.Signals, step: int, checkpoints: Checkpoints) -> NoReturn:
    """Exits with 0 after SIGTERM (a preemption was handled), 130 after Ctrl-C as shells expect."""
    print_once(f"{stop.name}: step {step} is saved in {checkpoints.folder}.")
    print_once("The same command resumes from there.")
    raise SystemExit(130 if stop == signal.SIGINT else 0)
