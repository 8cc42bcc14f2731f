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


def fits(
    value: Any,
    annotation: Any,
    accepts: Callable[[Any, Any], bool] = lambda value, annotation: False,
) -> bool:
    """Whether `value` is of the type `annotation`.

    Values, and items within them, for which `accepts(value, annotation)` returns True fit too.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar) or accepts(value, annotation):
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


def may_return(function: Callable, annotation: Any) -> bool:
    """Whether a function or a class may return a value of the type `annotation`.

    True also where the function's own annotation doesn't say.
    """
    if inspect.isclass(function):
        return _may_be(function, annotation)
    try:
        returned = inspect.signature(function, eval_str=True).return_annotation
    except NameError:  # Only imported for type checkers.
        return True
    return _may_be(returned, annotation)


def _may_be(kind: Any, annotation: Any) -> bool:
    """Whether an instance of the class `kind` fits; True where one of both is no class."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_may_be(kind, arg) for arg in args)
    expected = origin or annotation
    for unknown in (Any, inspect.Signature.empty):  # Both are classes.
        if unknown in (kind, annotation):
            return True
    is_known = inspect.isclass(kind) and inspect.isclass(expected) and not typing.get_origin(kind)
    if not is_known or getattr(expected, "_is_protocol", False):
        return True
    if expected in SEQUENCES:
        return issubclass(kind, (tuple, list))
    return issubclass(kind, (int, float) if expected is float else expected)


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
