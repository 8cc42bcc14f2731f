"""Parses and checks records: bytes -> text fields and problems.

All functions take a batch of records [B] and return strings [B]. The problem of a good record is
"", so that a bad one doesn't affect the others of its batch.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from google.protobuf.message import DecodeError

from speechgpt_jax import prompts, unit_text
from speechgpt_jax.data.checked import BLANK
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import any_of

_BYTE_ORDER_MARK = "^\ufeff"
# Characters of blank lines; RE2's \s is ASCII only.
_SPACE = r"\t-\r\x{1c}-\x{20}\x{85}\p{Z}"

Texts = dict[str, tf.Tensor]  # field -> [B]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check of records.

    Attributes:
      name: files that passed a check of this name are not checked again, so it also names what the
        check depends on.
      find_problems: texts -> problems [B].
    """

    name: str
    find_problems: Callable[[Texts], tf.Tensor]


def parse_json(lines: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """JSON objects -> fields and problems; a list of units becomes unit text."""
    return _parse_each(_json_texts, lines, fields)


def parse_examples(records: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """tf.train.Examples -> fields and problems."""
    return _parse_each(_example_texts, records, fields)


def parse_lines(lines: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """Lines -> fields and problems; the line is the only field."""

    def text(line: bytes, fields: Sequence[str]) -> list[bytes]:
        line.decode()
        return [line]

    return _parse_each(text, lines, fields)


def _parse_each(
    texts_of: Callable[[bytes, Sequence[str]], list[bytes]],
    records: tf.Tensor,
    fields: Sequence[str],
) -> tuple[Texts, tf.Tensor]:
    """Fields and problems, by a function of one record.

    It raises problems as UserErrors, and a UnicodeError if a text is not UTF-8.
    """

    def parse(records):
        rows = [_fields_and_problem(texts_of, record, fields) for record in records]
        return [np.array(column, object) for column in zip(*rows)]

    types = [tf.string] * (len(fields) + 1)
    columns = tf.numpy_function(parse, [records], types, stateful=False)
    *texts, problems = (tf.ensure_shape(column, [None]) for column in columns)
    return dict(zip(fields, texts)), problems


def _fields_and_problem(texts_of, record: bytes, fields: Sequence[str]) -> tuple[bytes, ...]:
    try:
        return *texts_of(record, fields), b""
    except UnicodeError:
        problem = "not UTF-8 text"
    except UserError as error:
        problem = str(error)
    return *(b"" for _ in fields), problem.encode()


def _json_texts(line: bytes, fields: Sequence[str]) -> list[bytes]:
    try:
        record = _parsed(line)
    except UnicodeError:
        raise
    except (ValueError, RecursionError) as error:  # Such as an integer that is too long for Python.
        raise UserError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError("not a JSON object")
    return [_text(record, field) for field in fields]


def _parsed(line: bytes) -> Any:
    # Only one thread parses at a time, and orjson is four times as fast. It refuses NaN and numbers
    # that take more than 64 bits, which Python writes and reads.
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line.decode())


def _example_texts(record: bytes, fields: Sequence[str]) -> list[bytes]:
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise UserError("not a tf.train.Example") from error
    texts = []
    for field in fields:
        if field not in features:
            raise UserError(f"no `{field}`")
        values = features[field].bytes_list.value
        if len(values) != 1:
            raise UserError(f"`{field}` is not one text")
        values[0].decode()
        texts.append(values[0])
    return texts


def _text(record: dict, field: str) -> bytes:
    if field not in record:
        raise UserError(f"no `{field}`")
    value = record[field]
    if isinstance(value, list) and all(type(unit) is int for unit in value):
        value = unit_text.units_to_text(value)
    if not isinstance(value, str):
        raise UserError(f"`{field}` is {json.dumps(value)[:40]}, not text")
    return value.encode()


def skip_blank(lines: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lines without byte order marks, and the problem BLANK for blank lines."""
    lines = tf.strings.regex_replace(lines, _BYTE_ORDER_MARK, "", replace_global=False)
    blank = tf.strings.regex_full_match(lines, f"[{_SPACE}]*")
    return lines, tf.where(blank, BLANK, b"")


def check_dialogues(num_units: int) -> Check:
    """A check of SpeechInstruct dialogues: closed speech, known units, a marker."""

    def check(texts: Texts) -> tf.Tensor:
        has_role = tf.strings.regex_full_match(texts["plain_text"], r"(?s).*\[Human\].*")
        role = tf.where(has_role, "", f"no {prompts.HUMAN} in its `plain_text`")
        return first_problem([role, *(speech_problems(t, num_units) for t in texts.values())])

    return Check(f"dialogues of {num_units} units", check)


def check_unit_text(num_units: int) -> Check:
    """A check that records are unit text only."""

    def check(texts: Texts) -> tf.Tensor:
        (text,) = texts.values()
        is_units = tf.strings.regex_full_match(text, r"\s*<sosp>(?:\s*<\d+>)*\s*<eosp>\s*")
        other = tf.where(is_units, "", "not <sosp>, units and <eosp>")
        return first_problem([speech_problems(text, num_units), other])

    return Check(f"text of {num_units} units", check)


def check_texts() -> Check:
    """A check of written instructions: no field may be blank, or of invisible characters only."""

    def check(texts: Texts) -> tf.Tensor:
        problems = [
            tf.where(
                tf.strings.regex_full_match(text, rf"[{_SPACE}\p{{Cc}}\p{{Cf}}]*"),
                f"`{field}` is blank",
                "",
            )
            for field, text in texts.items()
        ]
        return first_problem(problems)

    return Check("written texts", check)


def speech_problems(text: tf.Tensor, num_units: int) -> tf.Tensor:
    """Problems between `<sosp>` and `<eosp>`."""
    unit = any_of([f"<{n}>" for n in range(num_units)])
    rest = tf.strings.regex_replace(text, rf"<sosp>(?:\s*{unit})*\s*<eosp>", "")
    unknown = tf.strings.regex_full_match(rest, r"(?s).*<sosp>(?:\s*<\d+>)+\s*<eosp>.*")
    broken = tf.strings.regex_full_match(rest, r"(?s).*<(?:sosp|eosp)>.*")
    empty = tf.strings.regex_full_match(text, r"(?s).*<sosp>\s*<eosp>.*")
    units = f"none of <0> to <{num_units - 1}>" if num_units else "no token of the tokenizer"
    return first_problem(
        [
            tf.where(empty, "speech without units", ""),
            tf.where(unknown, f"a unit that is {units}", ""),
            tf.where(broken, "<sosp> unclosed, or followed by something that is no unit", ""),
        ]
    )


def first_problem(problems: Sequence[tf.Tensor]) -> tf.Tensor:
    """First problem of each record: ["", "a"], ["b", "c"] -> ["b", "a"]."""
    first, *others = problems
    for problem in others:
        first = tf.where(first == "", problem, first)
    return first
