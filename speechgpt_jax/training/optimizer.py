"""AdamW with warm-up, decay of the learning rate, clipping, and a guard against bad batches."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from speechgpt_jax.limits import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019).

    Attributes:
      learning_rate: the peak, reached when the warm-up ends.
      schedule: "cosine", "linear" or "constant" after the warm-up; the decay ends at the run's last
        step, rejected batches included.
      warmup: share of all steps, below 1, during which the rate rises linearly from 0: the first
        step has rate 0.
      b1, b2, eps: moment decay rates and the denominator's floor.
      weight_decay: decay of all matrices, embeddings included; norms and biases are never decayed
        (the convention of GPT-3 and of the LLaMA trainers after it).
      clip_norm: gradients are scaled down to this global norm.
      moments_dtype: "float32", or "bfloat16" to store both moments in half the memory. They are
        updated in float32, but changes of less than 1/512 of a moment are lost: use a b2 of at
        most 0.98 with it.
    """

    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_number("learning_rate", self.learning_rate, at_least=0)
        check_number("warmup, a share of all steps,", self.warmup, at_least=0, below=1)
        check_number("b1", self.b1, at_least=0, below=1)
        check_number("b2", self.b2, at_least=0, below=1)
        check_number("eps", self.eps, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("clip_norm", self.clip_norm, above=0)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("moments_dtype", self.moments_dtype, ("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Guard:
    """Rejects bad batches: their step changes nothing but the position in the schedule.

    A batch is bad if its loss or gradient is not finite, or if its loss is more than `spike` times
    the running mean of the losses before it, an exponential mean over about 100 steps.

    Attributes:
      spike: largest accepted loss over the running mean; above 1.
      patience: number of rejected batches in a row that are skipped; one more stops the run.
    """

    spike: float = 2.0
    patience: int = 0

    def __post_init__(self):
        check_number("spike, a multiple of the mean loss,", self.spike, above=1)
        check_number("patience", self.patience, at_least=0)


class GuardState(NamedTuple):
    """State of the guard and of the optimizer that it guards.

    Attributes:
      mean_loss: running mean of the accepted losses, float32 [].
      accepted: number of accepted batches, int32 [].
      rejected: 1 if the last batch was rejected, else 0, int32 [].
      inner: state of the optimizer.
    """

    mean_loss: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    inner: Any


def cosine_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """0 -> peak over the warm-up, then half a cosine down to 0 at `total_steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def linear_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """0 -> peak over the warm-up, then straight down to 0 at `total_steps`."""
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    fall = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
    return optax.join_schedules([rise, fall], [warmup_steps])


def constant_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """0 -> peak over the warm-up, then the peak."""
    del total_steps
    return optax.linear_schedule(0.0, peak, warmup_steps)


SCHEDULES = {
    "cosine": cosine_schedule,
    "linear": linear_schedule,
    "constant": constant_schedule,
}


def learning_rate_schedule(config: AdamW, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, from 0; the warm-up takes at least one."""
    warmup_steps = max(1, round(config.warmup * total_steps))
    # Optax has no decay over 0 steps. In a short run the warm-up may take all steps, and the decay
    # then starts after the last one.
    last_step = max(total_steps, warmup_steps + 1)
    return SCHEDULES[config.schedule](config.learning_rate, warmup_steps, last_step)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everything but norm scales and biases.

    By name, not by rank: the norms of scanned layers are stacked to [layers, embed]. A parameter
    called `scale` is that of a norm.
    """

    def is_decayed(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_scale = "norm" in name or "scale" in name.split("/")
        return not is_scale and "bias" not in name

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: AdamW, total_steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW with the configured schedule."""
    adamw = optax.adamw(
        learning_rate_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.moments_dtype != "float32":
        adamw = keep_state_in(config.moments_dtype, adamw)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def keep_state_in(
    dtype: str, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Wraps `optimizer` so that its state is stored in `dtype` and updated in float32."""

    def cast(state, dtype):
        # Step counts are whole numbers and stay as they are.
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def init(params):
        return cast(optimizer.init(params), dtype)

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def guarded(
    optimizer: optax.GradientTransformation, guard: Guard
) -> optax.GradientTransformationExtraArgs:
    """Wraps `optimizer`: `update(..., value=loss)` skips the batches that `guard` rejects."""

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return GuardState(jnp.float32(0), zero, zero, optimizer.init(params))

    def kept(rejected, old, new):
        if isinstance(old, optax.ScaleByScheduleState):
            # The learning rate follows the steps of the run, so that it ends at the last one.
            return new
        return jax.tree.map(lambda old, new: jnp.where(rejected, old, new), old, new)

    def update(grads, state, params=None, *, value, **_):
        is_spike = (state.accepted > 0) & (value > guard.spike * state.mean_loss)
        is_finite = jnp.isfinite(value) & jnp.isfinite(optax.global_norm(grads))
        rejected = is_spike | ~is_finite
        updates, inner = optimizer.update(grads, state.inner, params)
        updates = jax.tree.map(lambda x: jnp.where(rejected, 0, x), updates)
        # The mean of all losses over the first 100 steps, an exponential mean after them.
        weight = jnp.maximum(1 / (state.accepted + 1), 0.01)
        new = GuardState(
            mean_loss=state.mean_loss + weight * (value - state.mean_loss),
            accepted=state.accepted + 1,
            rejected=state.rejected,
            inner=inner,
        )
        new = jax.tree.map(
            functools.partial(kept, rejected),
            state,
            new,
            is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
        )
        return updates, new._replace(rejected=rejected.astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
