"""One step of training: packed tokens -> loss -> gradients -> new parameters.

A filter chooses the trained parameters. The others are `frozen`: they have no gradient and no
optimizer state, and are not part of the train state, so checkpoints only hold what is trained:

    graphdef, params, frozen = nnx.split(model, TRAINABLE["lora"], ...)
    state = TrainState.create(params, optimizer)
    step = make_train_step(graphdef, optimizer, unit_ids=range(1000, 1200), accumulation=1,
                           loss_columns=8192, seed=0)
    state, metrics = jax.jit(step, donate_argnums=0)(state, frozen, batch)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.training.cross_entropy import token_losses

EMBEDDINGS = ("embed_tokens", "lm_head")


def _is_embedding(path, value) -> bool:
    return isinstance(value, nnx.Param) and path[0] in EMBEDDINGS


# Filter of the trained parameters, by the value of `trainable`.
TRAINABLE = {
    "all": nnx.Param,
    "embeddings": _is_embedding,
    "lora": nnx.LoRAParam,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes; with the input position, the content of a checkpoint.

    Attributes:
      step: number of steps taken, int32 [].
      params: the trained parameters, any pytree.
      opt_state: optax's state for `params`.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def batch_metrics(
    losses: jax.Array,  # [B, T]
    correct: jax.Array,  # [B, T]
    batch: Mapping[str, jax.Array],
    unit_ids: range,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums over a batch as {name: (total, weight)}; the mean is total / weight.

    A target in `unit_ids` is a unit; every other is text.
    """
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    weights = weights.astype(jnp.float32)
    is_unit = (targets >= unit_ids.start) & (targets < unit_ids.stop)

    def total_and_weight(values, weights):
        return jnp.sum(values * weights), jnp.sum(weights)

    return {
        "loss": total_and_weight(losses, weights),
        "text_loss": total_and_weight(losses, weights * ~is_unit),
        "unit_loss": total_and_weight(losses, weights * is_unit),
        "accuracy": total_and_weight(correct, weights),
        "non_padding": total_and_weight(non_padding(batch), jnp.ones(targets.shape)),
    }


def non_padding(batch: Mapping[str, jax.Array]) -> jax.Array:
    """True where a token is part of an example, bool [B, T]: segment 0 is padding."""
    return batch["decoder_segment_ids"] > 0


def forward(
    model: nnx.Module,
    batch: Mapping[str, jax.Array],
    loss_columns: int,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy and correctness of every target, [B, T].

    The logits of `loss_columns` tokens of the vocabulary are in memory at the same time.
    """
    hidden = model(
        batch["decoder_input_tokens"],
        positions=batch["decoder_positions"],
        segment_ids=batch["decoder_segment_ids"],
        dropout_key=dropout_key,
    )
    targets = batch["decoder_target_tokens"]
    return token_losses(hidden, targets, model.output_kernels(), loss_columns)


def make_evaluation_step(graphdef: nnx.GraphDef, *, unit_ids: range, loss_columns: int) -> Callable:
    """A function (params, frozen, batch) -> sums of the batch's metrics, without dropout.

    Args:
      graphdef, unit_ids, loss_columns: see `make_train_step`.
    """

    def evaluation_step(params: Any, frozen: Any, batch: Mapping[str, jax.Array]) -> dict:
        model = nnx.merge(graphdef, params, frozen)
        return batch_metrics(*forward(model, batch, loss_columns), batch, unit_ids)

    return evaluation_step


def microbatches(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """[B, ...] -> [count, B / count, ...], each taking every `count`-th row.

    Strided, so that no row of a sharded batch moves to another device.
    """
    rows = len(batch["decoder_target_tokens"])
    if rows % count:
        raise UserError(
            f"batch of {rows} rows can't be accumulated in {count} parts;"
            f" try a batch size of {-(-rows // count) * count}."
        )
    return {
        key: x.reshape(rows // count, count, *x.shape[1:]).swapaxes(0, 1)
        for key, x in batch.items()
    }


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    unit_ids: range,
    accumulation: int,
    loss_columns: int,
    seed: int,
) -> Callable:
    """A function (state, frozen, batch) -> (state, metrics), to be jitted.

    The loss is sum(loss_weights * cross entropy) / sum(loss_weights) over the whole batch, for any
    number of microbatches. Batches have SeqIO's decoder_* keys.

    Args:
      graphdef: structure of the model.
      optimizer: its `update` also gets the loss as `value`.
      unit_ids: token ids of the units, whose loss is also a metric of its own.
      accumulation: number of microbatches.
      loss_columns: tokens of the vocabulary whose logits are in memory at the same time.
      seed: seed of dropout.
    """

    def weighted_sum(params, frozen, batch, key):
        model = nnx.merge(graphdef, params, frozen)
        losses, correct = forward(model, batch, loss_columns, key)
        metrics = batch_metrics(losses, correct, batch, unit_ids)
        return metrics["loss"][0], metrics

    def gradients(params, frozen, batch, key):
        return jax.grad(weighted_sum, has_aux=True)(params, frozen, batch, key)

    def accumulated_gradients(params, frozen, batch, key):
        def add(total, part_and_key):
            part = gradients(params, frozen, *part_and_key)
            return jax.tree.map(jnp.add, total, part), None

        parts = (microbatches(batch, accumulation), jax.random.split(key, accumulation))
        shapes = jax.eval_shape(gradients, params, frozen, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        compute = gradients if accumulation == 1 else accumulated_gradients
        grads, metrics = compute(state.params, frozen, batch, key)
        # A batch without any weighted target must not divide by zero.
        weight = jnp.maximum(metrics["loss"][1], 1)
        grads = jax.tree.map(lambda g: g / weight, grads)
        loss = metrics["loss"][0] / weight
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "tokens": jnp.sum(non_padding(batch)),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
