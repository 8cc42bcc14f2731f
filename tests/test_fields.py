"""Fields of JSON files are read with their types, and mistakes name the file and the field."""

from collections.abc import Mapping

import pytest

from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields

FIELDS = Fields({"size": 3, "ids": [1, 2], "null": None, "rope": {"factor": "2"}}, "x.json")


def test_values_that_fit():
    assert FIELDS.require("size", int, at_least=3) == 3
    assert FIELDS.get("ids", int | list[int], at_least=1, below=3) == [1, 2]
    assert FIELDS.get("null", int | None, at_least=1) is None
    assert FIELDS.get("other", int, 5) == 5
    assert FIELDS.inner("null") == Fields({}, "x.json: null")
    FIELDS.check_values({"size": 3, "missing": 4}, "only this size is built")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: FIELDS.require("other", int), r"has no 'other'; expected a whole number: get the"),
        (lambda: FIELDS.get("size", str), "has size 3; expected a string: correct it, or get"),
        (lambda: FIELDS.get("null", bool), "has null null; expected true or false"),
        (lambda: FIELDS.get("size", bool | None), "expected true or false or null"),
        (lambda: FIELDS.get("ids", list[str]), r"has ids \[1, 2\]; expected a list, each item a"),
        (
            lambda: FIELDS.get("rope", Mapping[str, float]),
            r'has rope {"factor": "2"}; expected a m',
        ),
        (lambda: FIELDS.get("size", int, at_least=4), "size 3 must be at least 4"),
        (lambda: FIELDS.get("ids", list[int], below=2), "ids 2 must be below 2"),
        (
            lambda: FIELDS.check_values({"size": 4}, "only 4 is built"),
            "has size 3; only 4 is built",
        ),
        (
            lambda: Fields({"a": [[1, 2], [3]]}, "x.json").get("a", list[list[int]], below=3),
            "a 3 must be below 3",
        ),
        (lambda: FIELDS.inner("rope").get("factor", float), 'rope has factor "2"; expected a fini'),
        (lambda: FIELDS.inner("size"), "has size 3; expected a mapping or null"),
        (lambda: Fields({"n": float("inf")}, "x.json").get("n", float), "has n Infinity; expected"),
    ],
)
def test_mistakes_name_the_file_and_the_field(read, message):
    with pytest.raises(UserError, match=f"^x.json.*{message}"):
        read()


def test_long_values_are_cut():
    with pytest.raises(UserError) as caught:
        Fields({"ids": ["a"] * 10_000}, "x.json").get("ids", list[int])
    assert len(str(caught.value)) < 200


def test_a_file_that_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"size": 3}')
    assert Fields.read(tmp_path / "a.json") == Fields({"size": 3}, f"{tmp_path}/a.json")


def test_a_source_is_named_once():
    for message in ("size 0 must be at least 1", "x.json: size 0 must be at least 1"):
        with (
            pytest.raises(UserError, match=r"^x.json: size 0 must be at least 1$"),
            naming("x.json"),
        ):
            raise UserError(message)
