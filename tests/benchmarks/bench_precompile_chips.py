"""Memory and collectives of the paper's runs, compiled for other chips than `bench_precompile`'s.

    python -m tests.benchmarks.bench_precompile_chips gpus         # 24 programs, 20 minutes
    python -m tests.benchmarks.bench_precompile_chips new_tpus     # 12 programs, 30 minutes
    python -m tests.benchmarks.bench_precompile_chips gpus --runs llama_7b_stage1

Each program is compiled by `python -m speechgpt_jax.precompile`, which needs jax[cuda13] or libtpu.
A cell of collectives is that of `bench_precompile`.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import (
    RUNS,
    collectives_column,
    collectives_text,
    compile_run,
    libtpu_version,
    peak_column,
    run_title,
)


def cuda_version() -> str:
    return f"jax {importlib.metadata.version('jax')} for CUDA 13"


@dataclasses.dataclass(frozen=True)
class Chips:
    """A table of topologies.

    Attributes:
      topologies: those whose memory is shown.
      shown: those whose collectives are shown.
      filled: those whose largest batch is searched for.
      compiler: version of the compiler.
    """

    topologies: tuple[str, ...]
    shown: tuple[str, ...]
    filled: tuple[str, ...]
    compiler: Callable[[], str]


CHIPS = {
    "gpus": Chips(
        ("h100-64", "h200-8", "b200-8", "a100-8"), ("h100-64",), ("h100-64",), cuda_version
    ),
    "new_tpus": Chips(("v6e-256", "tpu7x-128"), ("v6e-256", "tpu7x-128"), (), libtpu_version),
}


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("chips", choices=CHIPS)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    chips = CHIPS[args.chips]
    columns = [*map(peak_column, chips.topologies), *map(collectives_column, chips.shown)]
    memory = docs_table.Table(f"precompile_{args.chips}", ["run", "rows per chip", *columns])
    for run in args.runs:
        rows = RUNS[run][1]
        reports = {
            name: compile_run(run, name, f"--batch_per_chip={rows}") for name in chips.topologies
        }
        memory.add(
            run_title(run),
            f"{rows}",
            *(f"{report['peak_gib']:.2f}" for report in reports.values()),
            *(collectives_text(reports[name]["collectives"]) for name in chips.shown),
        )
    tables = [memory]
    if chips.filled:
        columns = ["7B stage 1 on", "most rows per chip", "peak GiB per chip"]
        tables.append(docs_table.Table(f"precompile_{args.chips}_largest", columns))
    for name in chips.filled:
        report = compile_run("llama_7b_stage1", name, "--find_batch")
        tables[1].add(name, f"{report['batch_per_chip']:g}", f"{report['peak_gib']:.2f}")
    if args.update_docs:
        for table in tables:
            table.update_docs(machine=chips.compiler())


if __name__ == "__main__":
    arguments.run(main)
