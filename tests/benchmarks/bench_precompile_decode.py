"""Memory and collectives of decoding with the weights cut over all chips.

    python -m tests.benchmarks.bench_precompile_decode                   # 5 programs, 15 minutes

One token each for 64 requests with room for 1,536 tokens, in bfloat16, compiled by
`python -m speechgpt_jax.precompile --decode`, which needs libtpu. Every token reads all weights and
the whole cache, so no program writes one in less time than a chip's memory takes for that.
"""

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import GIB, compile_run, libtpu_version

ROWS, LENGTH = 64, 1536
MESH = "--gin_file=gin/meshes/model.gin"
# Topology -> number of chips, and the GB that a chip reads from its memory in a second
# (https://docs.cloud.google.com/tpu/docs/v5e, .../v6e).
SLICES = {"v5e-8": (8, 819), "v5e-16": (16, 819), "v6e-8": (8, 1638)}
# 16 chips can't share the 40 heads of 13B.
PROGRAMS = [
    *(("llama_7b_stage1", topology) for topology in SLICES),
    *(("llama_13b_stage1", topology) for topology in ("v5e-8", "v6e-8")),
]


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = [
        *("slice", "peak GiB per chip", "weights and cache GiB", "MiB of collectives"),
        *("ms per token (lower bound)", "tokens/s (upper bound)"),
    ]
    table = docs_table.Table("precompile_decode", ["model", *columns])
    for run, topology in PROGRAMS:
        chips, bandwidth = SLICES[topology]
        report = compile_run(
            *(run, topology, MESH, "--decode", f"--batch_per_chip={ROWS / chips}"),
            f"--gin.inputs.load_host_batches.sequence_length={LENGTH}",
        )
        moved = sum(collective["bytes"] for collective in report["collectives"])
        seconds = report["argument_gib"] * GIB / (bandwidth * 1e9)
        table.add(
            *(run.split("_")[1].upper(), topology, f"{report['peak_gib']:.2f}"),
            *(f"{report['argument_gib']:.2f}", f"{moved / 2**20:.0f}"),
            *(f"{1e3 * seconds:.1f}", f"{ROWS / seconds:,.0f}"),
        )
    if args.update_docs:
        table.update_docs(machine=libtpu_version())


if __name__ == "__main__":
    arguments.run(main)
