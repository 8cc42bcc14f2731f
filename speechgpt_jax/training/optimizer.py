"""AdamW as language models are trained with: warm-up, decay, clipping, and what is not decayed."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019).

    Attributes:
      learning_rate: the peak, reached when the warm-up ends.
      schedule: "cosine", "linear" or "constant" after the warm-up.
      warmup: share of all steps during which the rate rises linearly from 0.
      b1, b2, eps: moment decay rates and the denominator's floor.
      weight_decay: of all matrices, embeddings included; norms and biases are never decayed
        (the convention of GPT-3 and of the LLaMA trainers after it).
      clip_norm: gradients are scaled down to this global norm.
    """

    learning_rate: float
    schedule: str = "cosine"
    warmup: float = 0.03
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


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
    """The learning rate of each step, 0 .. total_steps - 1."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"schedule {config.schedule!r} is unknown; take one of {list(SCHEDULES)}.")
    if not 0 <= config.warmup < 1:
        raise ValueError(f"warmup {config.warmup} must be a share of all steps, in [0, 1).")
    # At least one step of warm-up: a rate of exactly 0 at step 0 is optax's rise from 0.
    warmup_steps = max(1, round(config.warmup * total_steps))
    return SCHEDULES[config.schedule](config.learning_rate, warmup_steps, total_steps)


def decay_mask(params):
    """True where weight decay applies: everything but norm scales and biases.

    By name, not by rank: the norms of scanned layers are stacked to [layers, embed].
    """

    def is_decayed(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: AdamW, total_steps: int) -> optax.GradientTransformation:
    """Clip, then AdamW with the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
