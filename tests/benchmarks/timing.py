"""How the benchmarks take time: in turns, so that other work on the machine meets all alike."""

import statistics
import time
from collections.abc import Callable

WARM_UP = 4


def add_arguments(parser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--cpu_time", action="store_true", help="count CPU time, not wall time")


def medians(args, *functions: Callable[[], object]) -> list[float]:
    """Seconds of each over `args.rounds`, after calls that compile and warm up."""
    clock = 1 if args.cpu_time else 0
    return [seconds[clock] for seconds in wall_and_cpu(args.rounds, *functions)]


def wall_and_cpu(rounds: int, *functions: Callable[[], object]) -> list[tuple[float, float]]:
    """The same by both clocks."""
    # With both in one process, the heap grows for some rounds until no page is new.
    for _ in range(WARM_UP):
        for function in functions:
            function()
    taken = [[] for _ in functions]
    for _ in range(rounds):
        for function, times in zip(functions, taken):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [tuple(map(statistics.median, zip(*times))) for times in taken]
