"""Time measurement of the benchmarks: rounds alternate between the sides that are compared.

Other work on the machine then slows all sides equally, and their medians can be compared.
"""

import contextlib
import multiprocessing
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence

from speechgpt_jax.arguments import positive_int
from speechgpt_jax.errors import UserError

# glibc returns large buffers to the kernel at first; its heap needs some rounds to settle.
WARM_UP = 8
# PyTorch's threads keep spinning for a while after their last work.
REST_SECONDS = 0.3


def add_arguments(parser: ArgumentParser, rounds: int) -> None:
    """Adds --rounds, and --cpu_time for measurements while other work runs."""
    parser.add_argument(
        "--rounds", type=positive_int, default=rounds, help="timed calls of each side"
    )
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure CPU time instead of wall time"
    )


def medians(args: Namespace, *make_runs: Callable[[], Callable[[], object]]) -> list[float]:
    """Median seconds of each run over `args.rounds` rounds, compilation and warm-up excluded.

    Each side runs in a process of its own, as it would for its users: in one process they would
    share the C library's heap and its settings. `make_run` is pickled and called in that process;
    it returns the function that is timed.
    """
    clock = 1 if args.cpu_time else 0
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(own_process(make_run)) for make_run in make_runs]
        return [seconds[clock] for seconds in _medians(args.rounds, sides)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of at least two `values`, such as 0.95, doesn't exceed.

    Raises:
      UserError: there are fewer values.
    """
    if len(values) < 2:
        raise UserError(f"{len(values)} replies are too few for a percentile; give more --seconds.")
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]


def wall_and_cpu(rounds: int, *runs: Callable[[], object]) -> list[tuple[float, float]]:
    """Median (wall seconds, CPU seconds) of each run, all in this process."""
    return _medians(rounds, [lambda run=run: _timed(run) for run in runs])


def _medians(rounds, timed_runs):
    for _ in range(WARM_UP):
        for timed_run in timed_runs:
            timed_run()
    times_of_runs = [[] for _ in timed_runs]
    for _ in range(rounds):
        for timed_run, times in zip(timed_runs, times_of_runs):
            times.append(timed_run()[:2])
    return [tuple(map(statistics.median, zip(*times))) for times in times_of_runs]


def _timed(run, *arguments) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, result


@contextlib.contextmanager
def own_process(make_run: Callable[[], Callable]) -> Iterator[Callable]:
    """Starts a process that calls `make_run()` once, then its result for every round.

    Yields a function that passes its arguments to the process and returns
    (wall seconds, CPU seconds, result).
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(make_run, there))
    process.start()
    there.close()  # So that `recv` raises if the process dies.

    def timed_run(*arguments):
        time.sleep(REST_SECONDS)
        here.send(arguments)
        return here.recv()

    try:
        yield timed_run
    finally:
        here.close()
        process.join()


def _serve(make_run, pipe):
    run = make_run()
    with contextlib.suppress(EOFError):  # The parent closes the pipe at the end.
        while True:
            pipe.send(_timed(run, *pipe.recv()))
