"""SeqIO tasks and mixtures by their names."""

import difflib
from collections.abc import Iterable

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


def check_split(name: str, providers: Iterable[seqio.Task | seqio.Mixture], split: str) -> None:
    """Raises a UserError unless one of the providers, which are called `name`, has the split."""
    splits = {split for provider in providers for split in provider.splits}
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}.")
