"""Memory of training on long rows, with and without sharding them along their length.

    python -m tests.benchmarks.bench_precompile_long                     # 3 programs, 15 minutes

Stage 1 of 7B on a v5e-256, compiled by `python -m speechgpt_jax.precompile`, which needs libtpu,
with the fewest rows that each mesh takes.
"""

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import GIB, compile_run, libtpu_version

CHIPS = 256
CONTEXT_8 = "--gin_file=gin/meshes/fsdp_context8.gin"
# Mesh -> (tokens of a row, rows of a step, further flags).
PROGRAMS = {
    "`gin/meshes/fsdp.gin`": (32768, 256),
    "`gin/meshes/fsdp_context8.gin`": (32768, 32, CONTEXT_8),
    "the same with four times the tokens": (131072, 32, CONTEXT_8),
}


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = ["tokens of a row", "rows of a step", "peak GiB per chip", "GiB of all-to-alls"]
    table = docs_table.Table("precompile_long", ["7B stage 1 on a v5e-256", *columns])
    for name, (length, rows, *flags) in PROGRAMS.items():
        flags += [f"--gin.inputs.load_host_batches.sequence_length={length}"]
        report = compile_run(
            "llama_7b_stage1", f"v5e-{CHIPS}", *flags, f"--batch_per_chip={rows / CHIPS}"
        )
        exchanged = sum(c["bytes"] for c in report["collectives"] if c["op"] == "all-to-all")
        peak = (
            f"{report['peak_gib']:.2f}"
            if report["fits"]
            else f"{report['peak_gib']:.1f}: too large"
        )
        table.add(name, f"{length:,}", f"{rows}", peak, f"{exchanged / GIB:.1f}")
    if args.update_docs:
        table.update_docs(machine=libtpu_version())


if __name__ == "__main__":
    arguments.run(main)
