"""Compiles the train step of a run, or its decoding, for a TPU slice, without the TPUs.

    python -m speechgpt_jax.precompile --gin_file=gin/runs/llama_7b_stage1.gin --topology=v5e-256 \\
        [--batch_per_chip=4 | --find_batch] [--decode] [--json=report.json] \\
        [--gin.LlamaConfig.remat=minimal]

Says whether it fits, its peak memory, its flops and its collectives. Needs libtpu and a few
minutes of a CPU; no data, tokenizer or checkpoint is read.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
from absl import flags

from speechgpt_jax import gin_utils, sharding
from speechgpt_jax.compilation.decoding import report_decoding
from speechgpt_jax.compilation.report import Report, largest_that_fits, table
from speechgpt_jax.compilation.topologies import slice_devices
from speechgpt_jax.compilation.training import report_training
from speechgpt_jax.errors import UserError
from speechgpt_jax.training import inputs, lm
from speechgpt_jax.training.stage import Stage

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "A TPU slice, such as v5e-256 or v5p-128.", required=True
)
BATCH_PER_CHIP = flags.DEFINE_float(
    "batch_per_chip", None, "Rows a chip; by default the run's batch over all chips."
)
FIND_BATCH = flags.DEFINE_bool("find_batch", False, "Find the largest batch that fits.")
DECODE = flags.DEFINE_bool(
    "decode", False, "Compile prompts and answers of half the length each, not the train step."
)
JSON = flags.DEFINE_string("json", None, "Where to write the report, too.")


def main():
    # The host only compiles; what it compiles for is the topology's.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    report = precompile()
    print(f"{TOPOLOGY.value}, {report.batch_per_chip:g} rows a chip")
    print(table(report))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def precompile() -> Report:
    """The report of the run that gin describes; the largest batch's with --find_batch."""
    names = [field.name for field in dataclasses.fields(Stage)]
    training = Stage(**gin_utils.arguments(lm.train, names))
    batch = gin_utils.arguments(inputs.load_host_batches, ("batch_size", "sequence_length"))
    mesh_config = gin_utils.arguments(lm.train, ("mesh",))["mesh"]
    mesh = sharding.create_mesh(mesh_config, slice_devices(TOPOLOGY.value, mesh_config.slices))
    report_any = report_decoding if DECODE.value else report_training
    report_of = functools.partial(report_any, training, mesh, length=batch["sequence_length"])
    if FIND_BATCH.value:
        pieces = training.accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
        report = largest_that_fits(lambda n: report_of(rows=n * pieces))
        if report is None:
            raise UserError(f"not even {pieces} rows fit on {TOPOLOGY.value}; try more chips.")
        return report
    rows = batch["batch_size"]
    if BATCH_PER_CHIP.value is not None:
        rows = round(BATCH_PER_CHIP.value * mesh.size)
    return report_of(rows=rows)


if __name__ == "__main__":
    gin_utils.run(main, complete=False)
