"""The train step of a stage, lowered for a mesh from shapes, without weights."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from speechgpt_jax import sharding, xla_options
from speechgpt_jax.compilation.report import Report, compile_and_report
from speechgpt_jax.models.llama import SHARDED_SIZES, check_mesh
from speechgpt_jax.training import stage
from speechgpt_jax.training.stage import Stage
from speechgpt_jax.training.utilization import training_flops_per_token

BATCH_KEYS = ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")


def report_training(training: Stage, mesh: Mesh, rows: int, length: int) -> Report:
    """Report of one optimizer step on a batch of `rows` rows of `length` tokens."""
    tokens_per_chip = rows * length / mesh.size
    # Without attention (length 0): XLA can't count the flops of Pallas and cuDNN's kernels.
    flops_per_token = training_flops_per_token(training.model, 0, training.trainable)
    return compile_and_report(
        functools.partial(lower_train_step, training, mesh, rows, length),
        mesh,
        batch_per_chip=rows / mesh.size,
        model_flops=tokens_per_chip * flops_per_token,
    )


def lower_train_step(training: Stage, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The jitted step that `lm.train` runs, lowered for `mesh`."""
    check_mesh(training.model, mesh, SHARDED_SIZES)
    xla_options.check(training.xla_options or {}, mesh.devices.flat[0])
    parameters = stage.abstract_parameters(training, mesh)
    state, frozen = stage.split(training, parameters, mesh, create=sharding.abstract)
    step = stage.jit_train_step(training, state, mesh, unit_ids=range(training.model.vocab_size))
    batch = abstract_batch(mesh, rows, length)
    with sharding.use_mesh(mesh):
        return step.lower(state, frozen, batch)


def abstract_batch(mesh: Mesh, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch with SeqIO's decoder_* keys, sharded over the mesh.

    Raises:
      UserError: the batch doesn't divide over the mesh.
    """
    sharding.check_batch((rows, length), mesh)
    placement = sharding.batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=placement)
    return {f"decoder_{key}": tokens for key in BATCH_KEYS}
