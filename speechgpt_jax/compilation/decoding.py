"""The engine's programs, lowered for a mesh from shapes, without weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from speechgpt_jax import sharding
from speechgpt_jax.compilation.report import Report, compile_and_report
from speechgpt_jax.decoding import slots, worker
from speechgpt_jax.models.decoder import Decoder
from speechgpt_jax.models.llama import DECODING_SIZES, check_mesh, matmul_flops_per_token
from speechgpt_jax.training import stage
from speechgpt_jax.training.stage import Stage


def report_decoding(training: Stage, mesh: Mesh, rows: int, length: int) -> Report:
    """Report of writing one token each for `rows` requests, with room for `length` tokens each.

    The peak is that of writing or of reading a chunk of a prompt, whichever is larger.
    """
    sizes = {
        "batch_per_chip": rows / mesh.size,
        "model_flops": rows * float(matmul_flops_per_token(training.model, 0)) / mesh.size,
    }
    writing, reading = (
        compile_and_report(functools.partial(lower, training, mesh, rows, length), mesh, **sizes)
        for lower in (lower_write, lower_read)
    )
    if not reading.fits and writing.fits:
        return reading
    return dataclasses.replace(writing, peak_gib=max(writing.peak_gib, reading.peak_gib))


def lower_write(training: Stage, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The engine's program that writes the next tokens of every request, lowered for `mesh`."""
    with sharding.use_mesh(mesh, sharding.DECODING_RULES):
        programs, leaves, all_slots = _engine(training, mesh, rows, length)
        masks = jax.ShapeDtypeStruct((1, training.model.padded_vocab_size), jnp.int8)
        steps, until_free = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, bool))
        return programs.write.lower(leaves, all_slots, masks, steps, until_free)


def lower_read(training: Stage, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The engine's program that reads a large chunk of a prompt, lowered for `mesh`."""
    with sharding.use_mesh(mesh, sharding.DECODING_RULES):
        programs, leaves, all_slots = _engine(training, mesh, rows, length)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        tokens = jax.ShapeDtypeStruct((worker.large_chunk(),), jnp.int32)
        return programs.read.lower(leaves, all_slots, number, number, tokens, number)


def _engine(
    training: Stage, mesh: Mesh, rows: int, length: int
) -> tuple[slots.Programs, list[jax.ShapeDtypeStruct], slots.Slots]:
    """An engine's programs, and the shapes of its decoder and of its slots."""
    config = training.model
    check_mesh(config, mesh, DECODING_SIZES)

    def build() -> Decoder:
        return Decoder(stage.build(training), config=config, int8=False)

    graphdef = nnx.graphdef(nnx.eval_shape(build))
    decoder = nnx.merge(graphdef, sharding.abstract(lambda: nnx.state(build()), mesh))
    shapes = jax.eval_shape(functools.partial(slots.empty, num_slots=rows, size=length), decoder)
    all_slots = jax.tree.map(
        lambda x, spec: x.update(sharding=NamedSharding(mesh, spec)),
        shapes,
        slots.placements(shapes),
    )
    leaves, structure = jax.tree.flatten(decoder)
    return slots.Programs(structure, worker.TOKENS_PER_CALL), leaves, all_slots
