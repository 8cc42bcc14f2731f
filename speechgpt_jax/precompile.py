"""Compiles the train step of a run, or its decoding, for TPUs or GPUs that aren't attached.

    python -m speechgpt_jax.precompile --gin_file=gin/runs/llama_7b_stage1.gin --topology=v5e-256 \\
        [--batch_per_chip=4 | --find_batch] [--decode] [--json=report.json] \\
        [--gin.LlamaConfig.remat=minimal]

Prints whether the program fits into memory, its peak memory, flops and collectives. Needs libtpu,
or for GPUs jax[cuda13], and a few minutes on a CPU; no data, tokenizer or checkpoint is read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING

from absl import flags

from speechgpt_jax import files, gin_utils
from speechgpt_jax.arguments import checked, define, finite_float, output_file
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

if TYPE_CHECKING:
    from speechgpt_jax.compilation.report import Report


def topology(text: str) -> str:
    """Type of TPU slices and GPUs, such as v5e-256 and h100-64."""
    from speechgpt_jax.compilation.topologies import check

    return checked(text, check)


TOPOLOGY = define(
    "topology",
    topology,
    None,
    "A TPU slice, such as v5e-256, or GPUs, such as h100-64.",
    required=True,
)
BATCH_PER_CHIP = define(
    "batch_per_chip",
    finite_float(above=0),
    None,
    "Rows per chip; by default the run's batch size divided by the number of chips.",
)
FIND_BATCH = flags.DEFINE_bool("find_batch", False, "Find the largest batch that fits.")
DECODE = flags.DEFINE_bool(
    "decode",
    False,
    "Compile the engine's programs, which write a token per row and read prompts, instead of the"
    " train step.",
)
JSON = define("json", output_file, None, "File to write the report to as well.")


def main() -> None:
    import jax

    from speechgpt_jax.compilation.report import table

    # The host only compiles; the devices are those of the topology.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    report = precompile()
    print(f"{TOPOLOGY.value}, {report.batch_per_chip:g} rows per chip")
    print(table(report))
    if JSON.value:
        files.write_text(JSON.value, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def precompile() -> Report:
    """Report of the run that gin configures; with --find_batch at the largest batch that fits."""
    from speechgpt_jax import sharding
    from speechgpt_jax.compilation.decoding import report_decoding
    from speechgpt_jax.compilation.report import largest_that_fits
    from speechgpt_jax.compilation.topologies import devices
    from speechgpt_jax.compilation.training import report_training
    from speechgpt_jax.training import inputs, lm
    from speechgpt_jax.training.stage import Stage

    if FIND_BATCH.value and BATCH_PER_CHIP.value is not None:
        raise UserError("--find_batch and --batch_per_chip exclude one another; give one of them.")
    names = [field.name for field in dataclasses.fields(Stage)]
    training = Stage(**gin_utils.arguments(lm.train, names))
    batch = gin_utils.arguments(inputs.load_host_batches, ("batch_size", "sequence_length"))
    mesh_config = gin_utils.arguments(lm.train, ("mesh",))["mesh"]
    mesh = sharding.create_mesh(mesh_config, devices(TOPOLOGY.value, mesh_config.slices))
    report_program = report_decoding if DECODE.value else report_training
    report_rows = functools.partial(report_program, training, mesh, length=batch["sequence_length"])
    if FIND_BATCH.value:
        pieces = training.accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
        report = largest_that_fits(lambda n: report_rows(rows=n * pieces))
        if report is None:
            raise UserError(f"not even {pieces} rows fit on {TOPOLOGY.value}; try more chips.")
        return report
    rows = batch["batch_size"]
    check_number("batch_size", rows, at_least=1)
    if BATCH_PER_CHIP.value is not None:
        rows = round(BATCH_PER_CHIP.value * mesh.size)
    if rows < 1:
        raise UserError(
            f"--batch_per_chip={BATCH_PER_CHIP.value:g} on {mesh.size} chips is less than one row;"
            f" give at least {1 / mesh.size:g}."
        )
    return report_rows(rows=rows)


if __name__ == "__main__":
    gin_utils.run(main, complete=False)
