"""The decoding program, lowered for a mesh from shapes, without weights."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.compilation.report import Report, compile_and_report
from speechgpt_jax.decoding.generate import generate_padded
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.models.llama import matmul_flops_per_token
from speechgpt_jax.training import stage
from speechgpt_jax.training.stage import Stage


def report_decoding(training: Stage, mesh: Mesh, rows: int, length: int) -> Report:
    """Report of decoding `rows` prompts and answers of `length / 2` tokens each."""
    model = training.model
    all_tokens = length * matmul_flops_per_token(model, 0)
    # The output layer is only computed for the last token of a prompt.
    skipped = (length - length // 2) * 2 * model.hidden_size * model.vocab_size
    return compile_and_report(
        functools.partial(lower_generate, training, mesh, rows, length),
        batch_per_chip=rows / mesh.size,
        model_flops=rows * float(all_tokens - skipped) / mesh.size,
    )


def lower_generate(training: Stage, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The program of `generate`, lowered for `mesh`."""
    sharding.check_rows(rows, mesh)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: stage.build(training)))
    row = sharding.batch_sharding(mesh)
    is_id = jax.ShapeDtypeStruct((training.model.padded_vocab_size,), bool)
    with sharding.use_mesh(mesh):
        return generate_padded.lower(
            graphdef,
            stage.abstract_parameters(training, mesh),
            jax.ShapeDtypeStruct((rows, length - length // 2), jnp.int32, sharding=row),
            jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=row),
            is_id,
            is_id,
            jax.eval_shape(lambda: jax.random.key(0)),
            0,
            max_new_tokens=length // 2,
            sampling=Sampling(),
        )
