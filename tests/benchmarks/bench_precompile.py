"""Memory, FLOPs and collectives of the paper's runs, compiled for TPU slices without TPUs.

    python -m tests.benchmarks.bench_precompile                       # 26 programs, about an hour
    python -m tests.benchmarks.bench_precompile --runs llama_7b_stage1

Each program is compiled by `python -m speechgpt_jax.precompile`, which needs libtpu. FLOPs are
those of matrix products, on v4 and v5p. A cell of collectives is "asynchronous + synchronous
all-gathers; reduce-scatters", or all-reduces where these are larger.
"""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile

from speechgpt_jax import arguments
from tests.benchmarks import docs_table

# Run -> (rows per chip on v5e, on v4 and v5p).
RUNS = {
    "llama_7b_stage1": (4, 4),
    "llama_7b_stage2": (4, 4),
    "llama_7b_stage3": (1, 2),
    "llama_13b_stage1": (3, 3),
    "llama_13b_stage2": (3, 3),
    "llama_13b_stage3": (1, 2),
}
TWO_SLICES = "--gin_file=gin/meshes/two_slices.gin"
# Column -> (topology, further flags).
SLICES = {
    "v5e-256, fsdp 256": ("v5e-256",),
    "2 x v5e-256": ("v5e-256", TWO_SLICES),
    "v4-128, fsdp 64": ("v4-128",),
    "v5p-128, fsdp 64": ("v5p-128",),
}
GIB = 2**30
# Column of the program's FLOPs over those of the model.
FLOPS_RATIO = "FLOPs / FLOPs without recomputation"


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = ["run", "rows per chip", "FLOPs per chip", FLOPS_RATIO, *map(peak_column, SLICES)]
    memory = docs_table.Table("precompile_memory", columns)
    columns = ["run", *map(collectives_column, SLICES)]
    collectives = docs_table.Table("precompile_collectives", columns)
    for run in args.runs:
        reports = [
            compile_run(run, *topology, f"--batch_per_chip={RUNS[run][topology[0] != 'v5e-256']}")
            for topology in SLICES.values()
        ]
        add_rows(run, reports, memory, collectives)
    columns = ["7B stage 1 on a v5e-256", "rows per chip", "peak GiB per chip"]
    variants = docs_table.Table("precompile_variants", columns)
    for name, *flags in (
        (
            "fsdp 64, model 4 (`gin/meshes/fsdp_model4.gin`)",
            *("--gin_file=gin/meshes/fsdp_model4.gin", "--batch_per_chip=4"),
        ),
        ("largest batch that fits (`--find_batch`)", "--find_batch"),
    ):
        report = compile_run("llama_7b_stage1", "v5e-256", *flags)
        variants.add(name, f"{report['batch_per_chip']:g}", f"{report['peak_gib']:.2f}")
    if args.update_docs:
        for table in (memory, collectives, variants):
            table.update_docs(machine=libtpu_version())


def compile_run(run: str, topology: str, *flags: str) -> dict:
    """The report that `speechgpt_jax.precompile` writes."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = ["speechgpt_jax.precompile", f"--gin_file=gin/runs/{run}.gin", *flags]
        command += [f"--topology={topology}", f"--json={report}"]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())


def add_rows(
    run: str, reports: list[dict], memory: docs_table.Table, collectives: docs_table.Table
) -> None:
    on_v5e, on_others = RUNS[run]
    flops, own_flops = (reports[-1][f"{key}_per_chip"] for key in ("flops", "model_flops"))
    name = run_title(run)
    memory.add(
        name,
        f"{on_v5e}" if on_v5e == on_others else f"{on_others} (v5e: {on_v5e})",
        f"{flops:.3g}".replace("e+", "e"),
        f"{flops / own_flops:.2f}",
        *(f"{report['peak_gib']:.2f}" for report in reports),
    )
    collectives.add(name, *(collectives_text(report["collectives"]) for report in reports))


def peak_column(topology: str) -> str:
    """Head of a column of peak memory of a chip."""
    return f"peak GiB: {topology}"


def collectives_column(topology: str) -> str:
    """Head of a column of `collectives_text`."""
    return f"GiB of collectives: {topology}"


def run_title(run: str) -> str:
    """llama_7b_stage1 -> 7B stage 1."""
    return run.removeprefix("llama_").replace("b_stage", "B stage ")


def collectives_text(collectives: list[dict]) -> str:
    """`26.1 + 2.3; 13.8`: GiB of asynchronous and other all-gathers, and of reduce-scatters."""

    def total(op: str, *is_asynchronous: bool) -> float:
        kinds = (c for c in collectives if c["op"] == op and c["asynchronous"] in is_asynchronous)
        return sum(c["bytes"] for c in kinds) / GIB

    scattered, reduced = (total(op, True, False) for op in ("reduce-scatter", "all-reduce"))
    sums = f"{scattered:.1f}" if scattered > reduced else f"{reduced:.1f} by all-reduce"
    if max(scattered, reduced) < 0.05:
        sums = "none"
    return f"{total('all-gather', True):.1f} + {total('all-gather', False):.1f}; {sums}"


def libtpu_version() -> str:
    return f"libtpu {importlib.metadata.version('libtpu')}"


if __name__ == "__main__":
    arguments.run(main)
