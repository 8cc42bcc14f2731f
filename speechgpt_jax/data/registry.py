"""SeqIO tasks and mixtures by their names."""

import difflib

import seqio

from speechgpt_jax.errors import UserError


def find(name: str) -> seqio.Task | seqio.Mixture:
    """The task or mixture of a name; raises a UserError if it is unknown."""
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}."
        raise UserError(f"task {name!r} is unknown; {hint}")
    return seqio.get_mixture_or_task(name)


def check_split(name: str, splits: set[str], split: str) -> None:
    """Raises a UserError unless the task or mixture `name` with these splits has `split`."""
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}.")
