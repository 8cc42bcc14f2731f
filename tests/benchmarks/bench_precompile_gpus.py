"""Memory and collectives of the paper's runs, compiled for GPUs without a GPU.

    python -m tests.benchmarks.bench_precompile_gpus                  # 24 programs, 20 minutes
    python -m tests.benchmarks.bench_precompile_gpus --runs llama_7b_stage1

Each program is compiled by `python -m speechgpt_jax.precompile`, which needs jax[cuda13]. A cell of
collectives is that of `bench_precompile`.
"""

import importlib.metadata

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import RUNS, collectives_text, compile_run

TOPOLOGIES = ("h100-64", "h200-8", "b200-8", "a100-8")


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = ["rows per GPU", *TOPOLOGIES, f"collectives on {TOPOLOGIES[0]}"]
    memory = docs_table.Table("precompile_gpus", ["peak GiB per GPU", *columns])
    for run in args.runs:
        rows = RUNS[run][1]
        reports = [compile_run(run, name, f"--batch_per_chip={rows}") for name in TOPOLOGIES]
        memory.add(
            run.removeprefix("llama_").replace("b_stage", "B stage "),
            f"{rows}",
            *(f"{report['peak_gib']:.2f}" for report in reports),
            collectives_text(reports[0]["collectives"]),
        )
    largest = docs_table.Table(
        "precompile_gpus_largest", ["7B stage 1", "most rows per GPU", "peak GiB per GPU"]
    )
    report = compile_run("llama_7b_stage1", TOPOLOGIES[0], "--find_batch")
    largest.add(TOPOLOGIES[0], f"{report['batch_per_chip']:g}", f"{report['peak_gib']:.2f}")
    if args.update_docs:
        for table in (memory, largest):
            table.update_docs(machine=f"jax {importlib.metadata.version('jax')} for CUDA 13")


if __name__ == "__main__":
    arguments.run(main)
