"""How the benchmarks take time: in turns, so that other work on the machine meets all alike."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable

# The heap takes some rounds to settle: glibc gives large buffers back at first.
WARM_UP = 8
# PyTorch's threads spin for a while after their last work.
REST = 0.3


def add_arguments(parser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--cpu_time", action="store_true", help="count CPU time, not wall time")


def medians(args, *makes: Callable[[], Callable[[], object]]) -> list[float]:
    """Seconds of each over `args.rounds`, after calls that compile and warm up.

    Each has a process of its own, as its users have it: in one, the C library's heap and what one
    side sets for it would be the other's, too. `make`, which is pickled, gives there what is timed.
    """
    clock = 1 if args.cpu_time else 0
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(in_a_process(make)) for make in makes]
        return [seconds[clock] for seconds in _medians(args.rounds, sides)]


def wall_and_cpu(rounds: int, *functions: Callable[[], object]) -> list[tuple[float, float]]:
    """Seconds of each by both clocks, in this process."""
    return _medians(rounds, [lambda run=run: _timed(run) for run in functions])


def _medians(rounds, timed):
    for _ in range(WARM_UP):
        for take in timed:
            take()
    taken = [[] for _ in timed]
    for _ in range(rounds):
        for take, times in zip(timed, taken):
            times.append(take()[:2])
    return [tuple(map(statistics.median, zip(*times))) for times in taken]


def _timed(run, *arguments) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, result


@contextlib.contextmanager
def in_a_process(make):
    """What `make()` gives, called there: it returns seconds by both clocks and the result."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(make, there))
    process.start()
    there.close()  # So that a process that died ends the pipe.

    def take(*arguments):
        time.sleep(REST)
        here.send(arguments)
        return here.recv()

    try:
        yield take
    finally:
        here.close()
        process.join()


def _serve(make, pipe):
    run = make()
    with contextlib.suppress(EOFError):  # The pipe is closed at the end.
        while True:
            pipe.send(_timed(run, *pipe.recv()))
