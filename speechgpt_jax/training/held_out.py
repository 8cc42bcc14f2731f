"""Evaluation during training: the losses of held-out splits on the whole mesh, and answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training.inputs import HeldOut
from speechgpt_jax.training.progress import Averages

METRICS = ("loss", "text_loss", "unit_loss", "accuracy")


class Answered(Protocol):
    """Figures of what the model of a run answers.

    Attributes:
      names: their names, such as "test/demo_asr/wer".
    """

    names: Sequence[str]

    def __call__(self, model: Llama) -> dict[str, float]: ...


class AnsweredTasks(Protocol):
    """Tasks that a run answers while it trains, `evaluation.while_training.AnsweredTasks`."""

    def check(self, tokenizer: Tokenizer, config: LlamaConfig) -> None: ...
    def prepare(self, tokenizer: Tokenizer) -> Answered: ...


def losses(
    step: Callable,
    params: Any,
    frozen: Any,
    held_out: Sequence[HeldOut],
    mesh: Mesh,
) -> dict[str, float]:
    """{"test/loss": 2.1, "test/text_loss": ...} in nats per token; accuracy is a share.

    The text loss of a split without text is left out, likewise that of units.

    Args:
      step: the function that `stage.jit_evaluation_step` returns.
      params, frozen: the trained and the other parameters.
      held_out: the splits.
      mesh: mesh of the parameters.
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
    return values


def check_best(best: str | None, values: Mapping[str, float]) -> None:
    """Raises a UserError unless `best`, if it is not None, is among the values."""
    if best is not None and best not in values:
        raise UserError(
            f"Keep.best {best!r} has no value, since that split has no such tokens; choose one of"
            f" {', '.join(values)}."
        )


def check(
    held_out: Sequence[HeldOut],
    answered: Answered | None,
    evaluate_every: int | None,
    save_every: int,
    best: str | None,
) -> None:
    """Raises a UserError if the arguments of `lm.train` for evaluation contradict one another."""
    names = [split.name for split in held_out]
    if len(set(names)) < len(names):
        raise UserError(f"held_out has two splits called {max(names, key=names.count)}: name them.")
    if bool(held_out or answered) != bool(evaluate_every):
        raise UserError(
            f"evaluate_every {evaluate_every} goes with held_out or answered, of which"
            f" {'one is' if held_out or answered else 'none is'} bound: bind both, or neither."
        )
    if best is None:
        return
    known = [f"{name}/{metric}" for name in names for metric in METRICS]
    known += answered.names if answered else []
    if best not in known:
        raise UserError(
            f"Keep.best {best!r} is not evaluated; expected one of {', '.join(known) or '(none)'}."
        )
    if not evaluate_every or save_every % evaluate_every:
        raise UserError(
            f"save_every {save_every} must be a multiple of evaluate_every {evaluate_every}, since"
            " Keep.best compares checkpoints that were evaluated."
        )
