"""SeqIO tasks and mixtures by their names."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import seqio

from speechgpt_jax.errors import UserError

# Arguments with which `register_once` registered each name.
_arguments: dict[str, dict[str, Any]] = {}


def register_once(name: str, arguments: Mapping[str, Any], register: Callable[[], Any]) -> str:
    """Calls `register()` unless an earlier call had the same arguments; returns `name`.

    Gin calls a function once for every reference to it: a task is registered for the training
    batches, then again for the held-out ones.

    Args:
      name: name of the task or mixture.
      arguments: values that determine it, by name.
      register: adds the task or mixture to SeqIO's registry.

    Raises:
      UserError: SeqIO does not take the name, or something else is registered under it.
    """
    if not re.fullmatch(r"[\w.:#]+", name):
        raise UserError(
            f"task name {name!r} must have letters, digits, '_', '.', ':' and '#' only."
        )
    if name not in _known():
        register()
        _arguments[name] = dict(arguments)
    elif name in _arguments:
        _check_same(name, _arguments[name], arguments)
    else:
        raise UserError(f"task name {name!r} is taken by another task; choose another name.")
    return name


def _check_same(name: str, earlier: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises a UserError that shows the arguments in which two uses of one name differ."""
    if earlier.keys() != arguments.keys():
        raise UserError(
            f"{name!r} is registered as something of another kind: choose another name."
        )
    differing = [key for key in earlier if earlier[key] != arguments[key]]
    if differing:
        old, new = (
            ", ".join(f"{key}={given[key]!r}" for key in differing)
            for given in (earlier, arguments)
        )
        raise UserError(
            f"{name!r} is registered with {old}, so it can't have {new}: bind the same to both, or"
            " give one of them another name."
        )


def find(name: str) -> seqio.Task | seqio.Mixture:
    """The task or mixture of a name; raises a UserError if it is unknown."""
    known = _known()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}."
        raise UserError(f"task {name!r} is unknown; {hint}")
    return seqio.get_mixture_or_task(name)


def _known() -> set[str]:
    """Names of all tasks and mixtures."""
    return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def check_split(name: str, providers: Iterable[seqio.Task | seqio.Mixture], split: str) -> None:
    """Raises a UserError unless one of the providers, which are called `name`, has the split."""
    splits = {split for provider in providers for split in provider.splits}
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}.")
