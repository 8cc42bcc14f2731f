"""The train step of a stage, without its data and files.

`lm.train` runs it; `precompile` compiles it for devices that aren't attached.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechgpt_jax import sharding, xla_options
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_choice, check_number
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.training import utilization
from speechgpt_jax.training.optimizer import (
    AdamW,
    Guard,
    guarded,
    learning_rate_schedule,
    make_optimizer,
)
from speechgpt_jax.training.review import REJECTED
from speechgpt_jax.training.train_step import (
    TRAINABLE,
    TrainState,
    make_evaluation_step,
    make_train_step,
)

FROZEN_DTYPES = ("float32", "int8")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The arguments of `lm.train` that determine the train step; see its docstring."""

    model: LlamaConfig
    optimizer: AdamW
    steps: int
    trainable: str
    frozen_dtype: str
    accumulation: int
    loss_columns: int
    guard: Guard | None
    xla_options: Mapping[str, xla_options.Value] | None
    seed: int

    def __post_init__(self):
        check_number("steps", self.steps, at_least=1)
        check_number("accumulation", self.accumulation, at_least=1)
        check_number("loss_columns", self.loss_columns, at_least=1)
        check_number("seed", self.seed, at_least=0, below=2**32)
        check_choice("trainable", self.trainable, TRAINABLE)
        check_choice("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)
        if self.frozen_dtype == "int8" and self.trainable != "lora":
            raise UserError(
                f"frozen_dtype 'int8' is for adapters only, and trainable is {self.trainable!r}:"
                " set trainable to 'lora' or frozen_dtype to 'float32'."
            )


def build(stage: Stage) -> Llama:
    """A randomly initialised model in the form in which it is trained."""
    return prepare(stage, Llama(stage.model, rngs=nnx.Rngs(stage.seed)))


def prepare(stage: Stage, model: Llama) -> Llama:
    """`model`, with its projections rounded to int8 if the stage's `frozen_dtype` is that."""
    if stage.frozen_dtype == "int8":
        model.quantize()
    return model


def abstract_parameters(stage: Stage, mesh: Mesh) -> nnx.State:
    """Shapes and shardings of all parameters of the stage."""
    return sharding.abstract(lambda: nnx.state(build(stage), nnx.Param), mesh)


def prepare_parameters(stage: Stage, parameters: nnx.State, mesh: Mesh) -> nnx.State:
    """Converts a model's float32 parameters to the form in which they are trained or frozen."""
    if stage.frozen_dtype == "float32":
        return parameters
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Llama(stage.model, rngs=nnx.Rngs(stage.seed))))

    def prepared(parameters):
        return nnx.state(prepare(stage, nnx.merge(graphdef, parameters)), nnx.Param)

    return sharding.create_sharded(prepared, mesh, parameters)


def split(
    stage: Stage, parameters: nnx.State, mesh: Mesh, create: Callable = sharding.create_sharded
) -> tuple[TrainState, nnx.State]:
    """The train state, with the trained parameters, and the frozen parameters.

    With `create=sharding.abstract` the arguments and results are shapes.
    """
    params, frozen = nnx.split_state(parameters, TRAINABLE[stage.trainable], ...)
    start = functools.partial(TrainState.create, optimizer=make_stage_optimizer(stage))
    return create(start, mesh, params), frozen


def merge(stage: Stage, params: nnx.State, frozen: nnx.State) -> Llama:
    """The model with the trained and the frozen parameters."""
    return nnx.merge(_graphdef(stage), params, frozen)


def _graphdef(stage: Stage) -> nnx.GraphDef:
    """The model's structure."""
    return nnx.graphdef(nnx.eval_shape(lambda: build(stage)))


def make_stage_optimizer(stage: Stage) -> optax.GradientTransformation:
    """The stage's optimizer, with its guard if it has one."""
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    return guarded(optimizer, stage.guard) if stage.guard else optimizer


def jit_train_step(
    stage: Stage, state: TrainState, mesh: Mesh, unit_ids: range
) -> jax.stages.Wrapped:
    """The jitted step (state, frozen, batch) -> (state, metrics); it donates its state."""
    step = make_train_step(
        _graphdef(stage),
        make_stage_optimizer(stage),
        unit_ids=unit_ids,
        accumulation=stage.accumulation,
        loss_columns=stage.loss_columns,
        seed=stage.seed,
    )
    # The new state keeps the shardings of the old one; the metrics are replicated.
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding, state), everywhere
    return jax.jit(
        _measured(step, stage),
        donate_argnums=0,
        out_shardings=shardings,
        compiler_options=compiler_options(stage, mesh),
    )


def jit_evaluation_step(stage: Stage, mesh: Mesh, unit_ids: range) -> jax.stages.Wrapped:
    """The jitted step (params, frozen, batch) -> metrics, which are replicated."""
    step = make_evaluation_step(
        _graphdef(stage),
        unit_ids=unit_ids,
        loss_columns=stage.loss_columns,
    )
    return jax.jit(
        step,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(stage, mesh),
    )


def compiler_options(stage: Stage, mesh: Mesh) -> dict[str, xla_options.Value]:
    """XLA's options for the steps: the stage's own, and defaults for all others."""
    platform = mesh.devices.flat[0].platform
    return xla_options.for_training(platform, stage.model.dtype) | dict(stage.xla_options or {})


def _measured(step, stage):
    """`step` with two more metrics, the learning rate and the model's flops."""
    schedule = learning_rate_schedule(stage.optimizer, stage.steps)

    def train_step(state, frozen, batch):
        length = batch["decoder_target_tokens"].shape[1]
        flops = utilization.training_flops_per_token(stage.model, length, stage.trainable)
        learning_rate = schedule(state.step)
        state, metrics = step(state, frozen, batch)
        metrics |= {
            "learning_rate": jnp.asarray(learning_rate),
            "model_flops": metrics["tokens"] * flops,
        }
        rejected = optax.tree_utils.tree_get(state.opt_state, REJECTED)
        return state, metrics if rejected is None else metrics | {REJECTED: rejected}

    return train_step
