"""How the benchmarks take time: in turns, so that other work on the machine meets all alike."""

import statistics
import time
from collections.abc import Callable


def add_arguments(parser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--cpu_time", action="store_true", help="count CPU time, not wall time")


def medians(args, *functions: Callable[[], object]) -> list[float]:
    """Seconds of each over `args.rounds`, after one call that compiles and warms up."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    for function in functions:
        function()
    taken = [[] for _ in functions]
    for _ in range(args.rounds):
        for function, times in zip(functions, taken):
            start = clock()
            function()
            times.append(clock() - start)
    return [statistics.median(times) for times in taken]
