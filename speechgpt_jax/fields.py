"""Fields of a checkpoint's JSON files, read with their types.

    fields = Fields.read(folder / "config.json", "the config.json of a LLaMA")
    fields.require("vocab_size", int)
    fields.get("head_dim", int | None)
    fields.inner("rope_scaling").require("factor", float)

A value of another type is a UserError: `config.json has vocab_size "600"; expected a whole number`.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from speechgpt_jax import files
from speechgpt_jax.annotations import describe, fits
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number


@dataclasses.dataclass(frozen=True)
class Fields:
    """Values by name, and the file that they come from, for messages."""

    values: Mapping[str, Any]
    source: str

    @classmethod
    def read(cls, path: str | os.PathLike, expected: str = "a JSON file") -> "Fields":
        """The fields of a JSON object in a file; `expected` says in messages what the file is."""
        return cls(files.read_json(path, expected), os.fspath(path))

    def get(self, name: str, kind: Any, default: Any = None, **limits: float) -> Any:
        """The value of a field, or `default` if there is no such field.

        Args:
          name: name of the field.
          kind: type annotation that the value must fit; null fits only those with None.
          default: need not fit.
          **limits: of a number, or of all numbers in a list, as in `limits.check_number`.

        Raises:
          UserError: the value doesn't fit.
        """
        return self.require(name, kind, **limits) if name in self.values else default

    def require(self, name: str, kind: Any, **limits: float) -> Any:
        """The value of a field, as by `get`; a missing field is an error too."""
        if name not in self.values:
            raise UserError(
                f"{self.source} has no {name!r}; expected {_words(kind)}: get the file again."
            )
        value = self.values[name]
        if not fits(value, kind):
            raise UserError(
                f"{self.source} has {name} {_shown(value)}; expected {_words(kind)}: correct it, or"
                " get the file again."
            )
        if limits:
            for number in _numbers(value):
                check_number(f"{self.source}: {name}", number, **limits)
        return value

    def inner(self, name: str) -> "Fields":
        """The fields of an object within this one; none if it is missing or null."""
        values = self.get(name, Mapping | None)
        return Fields(values or {}, f"{self.source}: {name}")

    def check_values(self, expected: Mapping[str, Any], reason: str) -> None:
        """Raises a UserError if a field has another value than the expected one.

        Args:
          expected: value by name; a field may be missing.
          reason: reason for the expectation, the end of the message.
        """
        for name, value in expected.items():
            if (given := self.get(name, Any, value)) != value:
                raise UserError(f"{self.source} has {name} {given!r}; {reason}.")


def as_tuples(value: Any) -> Any:
    """Lists of a JSON file as tuples, for configs: [[1, 2], [3]] -> ((1, 2), (3,))."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def _numbers(value: Any) -> Iterator[float]:
    """All numbers of a value: [[1, 2], 3] -> 1, 2, 3; null has none."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif value is not None:
        yield value


def _words(kind: Any) -> str:
    """bool | None -> "true or false or null"."""
    return describe(kind).replace("True or False", "true or false").replace("None", "null")


def _shown(value: Any) -> str:
    """The beginning of a value as in a JSON file."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."
