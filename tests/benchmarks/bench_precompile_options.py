"""What options of XLA's compiler for TPUs change: peak memory, and which collectives overlap.

    python -m tests.benchmarks.bench_precompile_options      # 9 programs, half an hour

Stage 1 of 7B with four rows per chip, compiled by `python -m speechgpt_jax.precompile`, which needs
libtpu. "none" stands for this project's own options, which those of a row are added to. In
parentheses: how many of the GiB are moved asynchronously.
"""

from collections.abc import Mapping

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.benchmarks.bench_precompile import GIB, TWO_SLICES, compile_run, libtpu_version

ON_ONE_SLICE: tuple[Mapping[str, str | int], ...] = (
    {},
    {"xla_tpu_scoped_vmem_limit_kib": 98304},
    {
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
    {"xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "true"},
    {
        "xla_tpu_use_minor_sharding_for_major_trivial_input": "true",
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": 1,
        "xla_tpu_assign_all_reduce_scatter_layout": "true",
    },
    {
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    },
)
ON_TWO_SLICES: tuple[Mapping[str, str | int], ...] = (
    {},
    {"xla_enable_async_all_reduce": "true"},
    {
        "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
        "xla_tpu_data_parallel_opt_different_sized_ops": "true",
    },
)
GATHERS, SUMS = ("all-gather",), ("reduce-scatter", "all-reduce")
COLUMNS = ["chips", "options", "peak GiB per chip", "GiB of gathers", "GiB of sums of gradients"]


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    table = docs_table.Table("precompile_options", COLUMNS)
    for options in ON_ONE_SLICE:
        add_row(table, "v6e-256", "v6e-256", options)
    for options in ON_TWO_SLICES:
        add_row(table, "2 x v5e-256", "v5e-256", options, TWO_SLICES)
    if args.update_docs:
        table.update_docs(machine=libtpu_version())


def add_row(
    table: docs_table.Table, chips: str, topology: str, options: Mapping, *flags: str
) -> None:
    """Compiles the run with options of XLA and adds a row."""
    binding = f"--gin.train.xla_options={dict(options)!r}"
    report = compile_run("llama_7b_stage1", topology, *flags, "--batch_per_chip=4", binding)

    def moved(ops: tuple[str, ...]) -> str:
        rows = [row for row in report["collectives"] if row["op"] in ops]
        in_all = sum(row["bytes"] for row in rows) / GIB
        overlapped = sum(row["bytes"] for row in rows if row["asynchronous"]) / GIB
        return f"{in_all:.1f} ({overlapped:.1f})"

    names = ", ".join(f"`{name}={value}`" for name, value in options.items())
    table.add(
        *(chips, names or "none", f"{report['peak_gib']:.2f}"),
        *(moved(ops) for ops in (GATHERS, SUMS)),
    )


if __name__ == "__main__":
    arguments.run(main)
