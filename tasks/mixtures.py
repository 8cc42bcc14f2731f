"""Mixtures of tasks at rates bound from gin; gin/stages/cross_modal_mixture.gin is one."""

from collections.abc import Sequence

import seqio

from speechgpt_jax.errors import UserError


def mix(name: str, tasks: Sequence[str], rates: Sequence[float]) -> str:
    """Registers a mixture and returns its name.

    Args:
      name: name of the mixture.
      tasks: names of registered tasks.
      rates: sampling rate of each task; only their proportions count.

    Raises:
      UserError: a task is unknown, or the rates don't fit the tasks.
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
    seqio.MixtureRegistry.add(name, drawn)
    return name
