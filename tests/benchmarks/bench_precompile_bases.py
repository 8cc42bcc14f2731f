"""Memory and FLOPs of the three stages on other bases, compiled for the slices of their recipes.

    python -m tests.benchmarks.bench_precompile_bases                  # 16 programs, about an hour
    python -m tests.benchmarks.bench_precompile_bases --runs qwen2_5_7b_stage1

Batch and slice are those of the recipe, whose header names the slice; stage 1 of Qwen2.5 7B comes
once more with the batch of the table of LLaMA 7B.
"""

import pathlib
import re

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import FLOPS_RATIO, compile_run, libtpu_version

BASES = ("qwen2_5_0_5b", "qwen2_5_7b", "llama3_1b", "llama3_8b", "smollm2_135m")
RUNS = [f"{base}_stage{stage}" for base in BASES for stage in (1, 2, 3)]
PROGRAMS = [*((run, ()) for run in RUNS), ("qwen2_5_7b_stage1", ("--batch_per_chip=4",))]


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, metavar="RUN")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = ["slice", "rows per chip and step", FLOPS_RATIO, "peak GiB per chip"]
    table = docs_table.Table("precompile_bases", ["run", *columns])
    for run, flags in PROGRAMS:
        if run not in args.runs:
            continue
        topology = recipe_slice(run)
        report = compile_run(run, topology, *flags)
        ratio = report["flops_per_chip"] / report["model_flops_per_chip"]
        rows, peak = f"{report['batch_per_chip']:g}", f"{report['peak_gib']:.2f}"
        table.add(run, topology, rows, f"{ratio:.2f}", peak)
    if args.update_docs:
        table.update_docs(machine=libtpu_version())


def recipe_slice(run: str) -> str:
    """The slice in a recipe's header: "# Hardware:  TPU v5e-256, 3 rows per chip" -> "v5e-256"."""
    found = re.search(
        r"^# Hardware: +TPU (\S+),", pathlib.Path(f"gin/runs/{run}.gin").read_text(), re.M
    )
    assert found, f"{run} names no TPU slice"
    return found[1]


if __name__ == "__main__":
    arguments.run(main)
