"""A process for each core of a CPU, each with ears of its own.

XLA's threads share all cores: of two programs in one process, each product is cut in two and waits
for the other's halves. In a process that may use one core it is computed in one go.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

_ears = None  # In such a process, what `make` gave.


class Processes:
    """processes = Processes(make); processes(function, *args) -> function(make(), *args).

    `make`, function and arguments are pickled. Threads may call it at once. The processes start
    with the first call, and end with this one, however it ends.
    """

    def __init__(self, make: Callable[[], object]):
        cores = os.sched_getaffinity(0)
        # JAX does not survive a fork.
        context = multiprocessing.get_context("spawn")
        left = context.SimpleQueue()
        for core in cores:
            left.put(core)
        self._pool = ProcessPoolExecutor(len(cores), context, _begin, (left, make))
        self.started = False

    def __call__(self, function: Callable, *args):
        self.started = True
        return self._pool.submit(_call, function, *args).result()


def _begin(left, make: Callable[[], object]) -> None:
    global _ears
    os.sched_setaffinity(0, {left.get()})
    # Ctrl-C reaches all processes; the first one sees to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _ears = make()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, *args):
    return function(_ears, *args)
