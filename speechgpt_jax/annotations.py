"""Checks values against type annotations: `fits("ten", int)` is False.

A list also fits a tuple's annotation, since gin files use either, and an int fits a float's. NaN
and infinity fit no annotation but Any.
"""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Collection)
NUMBERS = {int: "a whole number", float: "a finite number"}
NAMES = {**NUMBERS, str: "a string", bool: "True or False", type(None): "None"}


def annotations(function: Callable) -> dict[str, Any]:
    """{parameter: annotation} of a function or of a class's constructor."""
    if inspect.isclass(function) and "__init__" in vars(function):
        function = function.__init__
    signature = inspect.signature(function, eval_str=True)
    return {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not inspect.Parameter.empty
    }


def fits(value: Any, annotation: Any, accepts: Callable[[Any], bool] = lambda value: False) -> bool:
    """Whether `value` is of the type `annotation`.

    Values, and items within them, for which `accepts` returns True fit any annotation.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar) or accepts(value):
        return True
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg, accepts) for arg in args)
    if origin is Literal:
        return value in args
    if annotation in NUMBERS:
        legal = (int, float) if annotation is float else int
        return isinstance(value, legal) and not isinstance(value, bool)
    if (origin or annotation) in SEQUENCES:
        return isinstance(value, (tuple, list)) and _items_fit(value, origin, args, accepts)
    if origin and issubclass(origin, collections.abc.Mapping):
        return isinstance(value, dict) and all(
            fits(key, args[0], accepts) and fits(item, args[1], accepts)
            for key, item in value.items()
        )
    if annotation is None:
        return value is None
    if getattr(annotation, "_is_protocol", False):
        return False  # No literal in a gin file implements a protocol.
    return isinstance(value, origin or annotation)


def _items_fit(value, origin, args, accepts) -> bool:
    if not args:
        return True
    if origin is tuple and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(lambda x, a: fits(x, a, accepts), value, args))
    return all(fits(item, args[0], accepts) for item in value)


def describe(annotation: Any) -> str:
    """The type `annotation` in words, for messages: int -> "a whole number"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, args))
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"({', '.join(map(describe, args))})"
    if (origin or annotation) in SEQUENCES:
        return f"a list, each item {describe(args[0])}" if args else "a list"
    if (origin or annotation) is collections.abc.Mapping:
        return f"a mapping, each value {describe(args[1])}" if args else "a mapping"
    if annotation in NAMES:
        return NAMES[annotation]
    return f"a {getattr(origin or annotation, '__name__', str(annotation))}"
