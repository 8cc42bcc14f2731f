"""Evaluation during training: the losses of held-out splits, on the whole mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.inputs import HeldOut
from speechgpt_jax.training.progress import Averages

METRICS = ("loss", "text_loss", "unit_loss", "accuracy")


def evaluate(
    step: Callable,
    params: Any,
    frozen: Any,
    held_out: Sequence[HeldOut],
    mesh: Mesh,
    best: str | None,
) -> dict[str, float]:
    """{"test/loss": 2.1, "test/text_loss": ...} in nats per token; accuracy is a share.

    The text loss of a split without text is left out, likewise that of units.

    Args:
      step: the function that `stage.jit_evaluation_step` returns.
      params, frozen: the trained and the other parameters.
      held_out: the splits.
      mesh: mesh of the parameters.
      best: metric by which checkpoints are compared, or None.

    Raises:
      UserError: no split has a value of `best`.
    """
    # Read after all steps are dispatched, so that the devices never wait for the host.
    sums = {
        split.name: [
            step(params, frozen, sharding.place_batch(batch, mesh)) for batch in split.batches
        ]
        for split in held_out
    }
    values = {}
    for name, batches in jax.device_get(sums).items():
        averages = Averages()
        for metrics in batches:
            averages.add({key: metrics[key] for key in METRICS})
        values |= {f"{name}/{key}": value for key, value in averages.means().items()}
    if best is not None and best not in values:
        raise UserError(
            f"Keep.best {best!r} has no value, since that split has no such tokens; choose one of"
            f" {', '.join(values)}."
        )
    return values


def check(
    held_out: Sequence[HeldOut], evaluate_every: int | None, save_every: int, best: str | None
) -> None:
    """Raises a UserError if the arguments of `lm.train` for evaluation contradict one another."""
    names = [split.name for split in held_out]
    if len(set(names)) < len(names):
        raise UserError(f"held_out has two splits called {max(names, key=names.count)}: name them.")
    if bool(held_out) != bool(evaluate_every):
        raise UserError(
            "held_out and evaluate_every belong together: bind both, or neither, got"
            f" {len(held_out)} splits and {evaluate_every}."
        )
    if best is None:
        return
    known = [f"{name}/{metric}" for name in names for metric in METRICS]
    if best not in known:
        raise UserError(
            f"Keep.best {best!r} is not evaluated; expected one of {', '.join(known) or '(none)'}."
        )
    if not evaluate_every or save_every % evaluate_every:
        raise UserError(
            f"save_every {save_every} must be a multiple of evaluate_every {evaluate_every}, since"
            " Keep.best compares checkpoints that were evaluated."
        )
