"""Checks of configured values: numbers within limits, lists of sizes, one of several choices.

    check_number("warmup", warmup, at_least=0, below=1)
    check_sizes(rates=(5, 4), kernel_sizes=(11, 8))
    check_choice("schedule", schedule, ("cosine", "linear"))

Limits are `above`, `at_least`, `below` and `at_most`; NaN and infinity are always rejected. Where
neither `below` nor `at_most` is given, a number must fit JAX's types, int32 and float32; and a
number above 0 must be so in float32.
"""

import math
import operator
import os
from collections.abc import Collection, Mapping, Sequence

from speechgpt_jax.errors import UserError

LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3.4e38
SMALLEST_FLOAT = 1.2e-38  # Smaller ones become 0.

_COMPARISONS = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


def is_within(value: float, **limits: float) -> bool:
    """Whether `value` is finite, within all limits, and a number of JAX's types."""
    return _is_between(value, _with_types(value, limits))


def limits_text(value: float = math.nan, **limits: float) -> str:
    """at_least=0, below=1 -> "at least 0 and below 1"; without limits "finite".

    If `value` is within these limits, those of JAX's types are named too.
    """
    if _is_between(value, limits):
        limits = _with_types(value, limits)
    texts = [f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items()]
    return " and ".join(texts) or "finite"


def check_number(name: str, value: float, **limits: float) -> None:
    """Raises a UserError unless `value` is finite and within all limits."""
    if not is_within(value, **limits):
        finite = "finite and " if limits and not _is_finite(value) else ""
        raise UserError(f"{name} {value} must be {finite}{limits_text(value, **limits)}.")


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # A long integer is no float.


def _is_between(value: float, limits: Mapping[str, float]) -> bool:
    return _is_finite(value) and all(
        _COMPARISONS[name](value, limit) for name, limit in limits.items()
    )


def _with_types(value: float, limits: Mapping[str, float]) -> dict[str, float]:
    """`limits`, and those of JAX's type for `value` where there are no closer ones."""
    types = {}
    if limits.get("above") == 0 and 0 < value < SMALLEST_FLOAT:
        types["at_least"] = SMALLEST_FLOAT
    if "below" not in limits and "at_most" not in limits:
        types["at_most"] = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
    return {**limits, **types}


def check_sizes(**lists: Sequence[float]) -> None:
    """Raises a UserError unless all values are at least 1 and the lists have the same length."""
    for name, values in lists.items():
        for value in values:
            check_number(name, value, at_least=1)
    check_lengths(**lists)


def check_lengths(**lists: Sequence) -> None:
    """Raises a UserError unless the lists have the same length, at least 1."""
    if len({len(values) for values in lists.values()} - {0}) != 1 or not all(lists.values()):
        given = ", ".join(f"{name} {values}" for name, values in lists.items())
        raise UserError(f"{given} must be of one length, at least 1.")


def check_memory(name: str, size: int, num_bytes: int) -> None:
    """Raises a UserError if `size` items of a batch, `num_bytes` in all, don't fit in memory."""
    memory = host_memory()
    if num_bytes > memory:
        largest = size * memory // num_bytes
        raise UserError(
            f"{name} {size}: the data of one batch would take {num_bytes / 2**30:,.0f} GiB, and"
            f" this computer has {memory / 2**30:,.0f}; take at most {largest}, and far less with"
            " the model beside it."
            if largest
            else f"{name} {size}: even one example of a batch would take"
            f" {num_bytes / size / 2**30:,.0f} GiB, and this computer has {memory / 2**30:,.0f};"
            " take a shorter one."
        )


def host_memory() -> int:
    """Bytes of this computer's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} {value!r} must be one of {', '.join(choices)}.")
