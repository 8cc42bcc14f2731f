"""Mixtures of tasks at rates bound from gin; gin/stages/cross_modal_mixture.gin is one."""

from collections.abc import Sequence

import seqio

from speechgpt_jax.data import registry
from speechgpt_jax.errors import UserError


def mix(name: str, tasks: Sequence[str], rates: Sequence[float]) -> str:
    """Registers a mixture and returns its name.

    Args:
      name: name of the mixture.
      tasks: names of registered tasks.
      rates: sampling rate of each task; only their proportions count.

    Raises:
      UserError: a task is unknown, the rates don't fit the tasks, the tasks have different
        features, or the name is illegal or another mixture's.
    """
    for task in tasks:
        if task not in seqio.TaskRegistry.names():
            known = ", ".join(sorted(seqio.TaskRegistry.names()))
            raise UserError(f"Mixture {name!r} has an unknown task {task!r}; there are {known}.")
    if len(tasks) != len(rates) or min(rates, default=0) < 0 or not sum(rates):
        raise UserError(
            f"Mixture {name!r} has the rates {list(rates)} for {len(tasks)} tasks: give each a rate"
            " of 0 or more, and one of them more than 0."
        )
    drawn = [(task, float(rate)) for task, rate in zip(tasks, rates) if rate]
    _check_features(name, [task for task, _ in drawn])
    arguments = {"tasks": list(tasks), "rates": list(rates)}
    return registry.register_once(name, arguments, lambda: seqio.MixtureRegistry.add(name, drawn))


def _check_features(name: str, tasks: Sequence[str]) -> None:
    """Raises a UserError if some of the tasks have other features than the first."""
    features = {task: sorted(seqio.TaskRegistry.get(task).output_features) for task in tasks}
    for task in tasks:
        if features[task] != features[tasks[0]]:
            raise UserError(
                f"Mixture {name!r} has tasks of different features: {tasks[0]!r} has"
                f" {', '.join(features[tasks[0]])} and {task!r} {', '.join(features[task])}; units"
                " without a dialogue and dialogues are trained in different runs."
            )
