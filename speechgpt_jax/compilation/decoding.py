"""The decoding program, lowered for a mesh from shapes, without weights."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from speechgpt_jax import sharding
from speechgpt_jax.compilation.report import Report, compile_and_report
from speechgpt_jax.decoding import slots
from speechgpt_jax.models.decoder import Decoder
from speechgpt_jax.models.llama import DECODING_SIZES, check_mesh, matmul_flops_per_token
from speechgpt_jax.training import stage
from speechgpt_jax.training.stage import Stage


def report_decoding(training: Stage, mesh: Mesh, rows: int, length: int) -> Report:
    """Report of writing one token each for `rows` requests, with room for `length` tokens each."""
    return compile_and_report(
        functools.partial(lower_step, training, mesh, rows, length),
        mesh,
        batch_per_chip=rows / mesh.size,
        model_flops=rows * float(matmul_flops_per_token(training.model, 0)) / mesh.size,
    )


def lower_step(training: Stage, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The engine's program that writes the next token of every request, lowered for `mesh`."""
    config = training.model
    check_mesh(config, mesh, DECODING_SIZES)

    def build():
        return Decoder(stage.build(training), config=config, int8=False)

    graphdef = nnx.graphdef(nnx.eval_shape(build))
    decoder = nnx.merge(graphdef, sharding.abstract(lambda: nnx.state(build()), mesh))
    next_state = jax.ShapeDtypeStruct((1, config.padded_vocab_size), jnp.int8)
    with sharding.use_mesh(mesh, sharding.DECODING_RULES):
        empty = functools.partial(slots.empty, num_slots=rows, size=length)
        shapes = jax.eval_shape(empty, decoder)
        abstract = jax.tree.map(
            lambda x, spec: x.update(sharding=NamedSharding(mesh, spec)),
            shapes,
            slots.placements(shapes),
        )
        return jax.jit(slots.step, donate_argnums=1).lower(decoder, abstract, next_state)
