"""Checks of configured values: numbers within limits, and one of several choices.

    check_number("warmup", warmup, at_least=0, below=1)
    check_choice("schedule", schedule, ("cosine", "linear"))

Limits are `above`, `at_least`, `below` and `at_most`; NaN and infinity are always rejected.
"""

import math
import operator
from collections.abc import Collection

from speechgpt_jax.errors import UserError

_COMPARISONS = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


def is_within(value: float, **limits: float) -> bool:
    """Whether `value` is finite and within all limits."""
    is_finite = isinstance(value, int) or math.isfinite(value)  # A long integer is no float.
    return is_finite and all(_COMPARISONS[name](value, limit) for name, limit in limits.items())


def limits_text(**limits: float) -> str:
    """at_least=0, below=1 -> "at least 0 and below 1"; without limits "finite"."""
    texts = [f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items()]
    return " and ".join(texts) or "finite"


def check_number(name: str, value: float, **limits: float) -> None:
    """Raises a UserError unless `value` is finite and within all limits."""
    if not is_within(value, **limits):
        raise UserError(f"{name} {value} must be {limits_text(**limits)}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} {value!r} must be one of {', '.join(choices)}.")
