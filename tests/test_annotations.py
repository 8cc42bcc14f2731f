"""Checks of values against type annotations, and the words for a type in messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import pytest

from speechgpt_jax.annotations import annotations, describe, fits, may_return


class Readable(Protocol):
    def read(self) -> str: ...


@pytest.mark.parametrize(
    ("annotation", "fitting", "others"),
    [
        (int, [3, -1], [3.0, "3", True, None, [3]]),
        (float, [3, 0.5], ["3", True, None, float("nan"), float("inf")]),
        (str, ["a", ""], [3, None, ["a"]]),
        (bool, [True], [1, 0, "True", None]),
        (int | None, [3, None], ["3", 3.0]),
        (tuple[int, int], [(1, 2), [1, 2]], [(1,), (1, 2, 3), (1, "2"), 1]),
        (tuple[str, ...], [("a", "b"), [], ["a"]], ["a", ("a", 1)]),
        (Sequence[float], [[1, 0.5]], ["ab", [float("nan")], 1.0]),
        (Mapping[str, str], [{"a": "b"}], [{"a": 1}, {1: "a"}, "a"]),
        (Literal["all", "lora"], ["all"], ["some", 1, None]),
        (Any, [1, "a", None], []),
        (Readable, [], ["a", 1]),
        (Callable, [], ["a", 1]),
        (Callable[[int], int] | None, [None], ["a", 1]),
        (Exception, [ValueError()], ["a", 1, None]),
    ],
)
def test_fits(annotation, fitting, others):
    for value in fitting:
        assert fits(value, annotation), value
    for value in others:
        assert not fits(value, annotation), value


def test_items_that_are_accepted_fit():
    def accepts(value, annotation):
        return value == "later" and annotation is int

    assert fits([1, "later"], Sequence[int], accepts)
    assert fits({"a": "later"}, Mapping[str, int] | None, accepts)
    assert not fits(["later"], Sequence[bool], accepts)


def number() -> int: ...


def names() -> list: ...


def maybe() -> "int | None": ...


def of_unknown_type(): ...


@pytest.mark.parametrize(
    ("function", "fitting", "others"),
    [
        (
            number,
            [int, float, int | None, Any, Literal[1], Readable],
            [str, Sequence[int], Callable],
        ),
        (names, [tuple[str, ...], Sequence[str]], [str, Mapping[str, str]]),
        (ValueError, [ValueError, Exception, ValueError | None], [KeyError, int]),
        (maybe, [int, str], []),
        (of_unknown_type, [int, ValueError], []),
    ],
)
def test_results_of_functions(function, fitting, others):
    for annotation in fitting:
        assert may_return(function, annotation), annotation
    for annotation in others:
        assert not may_return(function, annotation), annotation


def test_descriptions():
    assert describe(int) == "a whole number"
    assert describe(float | None) == "a finite number or None"
    assert describe(tuple[int, int]) == "(a whole number, a whole number)"
    assert describe(tuple[str, ...]) == "a list, each item a string"
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"
    assert describe(Mapping[str, float] | None) == "a mapping, each value a finite number or None"
    assert describe(Mapping) == "a mapping"
    assert describe(ValueError) == "a ValueError"


def test_annotations_of_functions_and_constructors():
    class Config:
        def __init__(self, size: "int", more=None):
            pass

    def build(size: int, more=None): ...

    assert annotations(Config) == annotations(build) == {"size": int}
