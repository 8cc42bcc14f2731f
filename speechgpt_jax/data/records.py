"""From the bytes of records to their text fields, and what is wrong with them.

Everything here takes a batch of records [B] and gives strings [B]; a problem is "" where there is
none, so that one bad record of a batch neither hides the others nor stops them.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from speechgpt_jax import prompts, unit_text
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import any_of

Texts = dict[str, tf.Tensor]  # field -> [B]
Check = Callable[[Texts], tf.Tensor]  # problems [B]


def parse_json(lines: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """JSON objects -> fields and problems; a list of units becomes unit text."""

    def parse(lines):
        rows = [_parse_line(line, fields) for line in lines]
        return [np.array(column, object) for column in zip(*rows)]

    types = [tf.string] * (len(fields) + 1)
    columns = tf.numpy_function(parse, [lines], types, stateful=False)
    *texts, problems = (tf.ensure_shape(column, [None]) for column in columns)
    return dict(zip(fields, texts)), problems


def _parse_line(line: bytes, fields: Sequence[str]) -> tuple[bytes, ...]:
    """The fields, and the problem."""
    try:
        record = json.loads(line.decode())
        if not isinstance(record, dict):
            raise UserError("not a JSON object")
        return *(_text(record, field) for field in fields), b""
    except UnicodeError:
        problem = "not UTF-8 text"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error}"
    except ValueError as error:
        problem = str(error)
    return *(b"" for _ in fields), problem.encode()


def _text(record: dict, field: str) -> bytes:
    if field not in record:
        raise UserError(f"no `{field}`")
    value = record[field]
    if isinstance(value, list) and all(isinstance(unit, int) for unit in value):
        value = unit_text.units_to_text(value)
    if not isinstance(value, str):
        raise UserError(f"`{field}` is {json.dumps(value)[:40]}, not text")
    return value.encode()


def parse_examples(records: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """tf.train.Examples -> fields and problems."""
    parsed = tf.io.parse_example(records, {f: tf.io.RaggedFeature(tf.string) for f in fields})
    texts = {field: parsed[field].to_tensor(shape=[None, 1])[:, 0] for field in fields}
    problems = [tf.where(parsed[f].row_lengths() == 1, "", f"no `{f}`") for f in fields]
    return texts, first_problem(problems)


def parse_lines(lines: tf.Tensor, fields: Sequence[str]) -> tuple[Texts, tf.Tensor]:
    """Lines that are the only field."""
    (field,) = fields
    return {field: lines}, tf.zeros_like(lines)


def check_dialogues(num_units: int) -> Check:
    """A check of SpeechInstruct dialogues: whole speech, known units, a role to start from."""

    def check(texts: Texts) -> tf.Tensor:
        has_role = tf.strings.regex_full_match(texts["plain_text"], r"(?s).*\[Human\].*")
        role = tf.where(has_role, "", f"no {prompts.HUMAN} in its `plain_text`")
        return first_problem([role, *(speech_problems(t, num_units) for t in texts.values())])

    return check


def check_unit_text(num_units: int) -> Check:
    """A check of records that are unit text and nothing else."""

    def check(texts: Texts) -> tf.Tensor:
        (text,) = texts.values()
        is_units = tf.strings.regex_full_match(text, r"\s*<sosp>(?:\s*<\d+>)*\s*<eosp>\s*")
        other = tf.where(is_units, "", "not <sosp>, units and <eosp>")
        return first_problem([speech_problems(text, num_units), other])

    return check


def check_texts(texts: Texts) -> tf.Tensor:
    """A check of written instructions: no field may be blank."""
    problems = [
        tf.where(tf.strings.regex_full_match(text, r"\s*"), f"`{field}` is blank", "")
        for field, text in texts.items()
    ]
    return first_problem(problems)


def speech_problems(text: tf.Tensor, num_units: int) -> tf.Tensor:
    """What is wrong between `<sosp>` and `<eosp>`."""
    unit = any_of([f"<{n}>" for n in range(num_units)])
    rest = tf.strings.regex_replace(text, rf"<sosp>(?:\s*{unit})*\s*<eosp>", "")
    unknown = tf.strings.regex_full_match(rest, r"(?s).*<sosp>(?:\s*<\d+>)+\s*<eosp>.*")
    broken = tf.strings.regex_full_match(rest, r"(?s).*<(?:sosp|eosp)>.*")
    return first_problem(
        [
            tf.where(unknown, f"a unit that is none of <0> to <{num_units - 1}>", ""),
            tf.where(broken, "<sosp> unclosed, or followed by something that is no unit", ""),
        ]
    )


def encoding_problems(texts: Texts) -> tf.Tensor:
    """Fields that are not UTF-8; the tokenizer takes nothing else."""
    problems = [
        tf.where(text == tf.strings.unicode_transcode(text, "UTF-8", "UTF-8"), "", "not UTF-8 text")
        for text in texts.values()
    ]
    return first_problem(problems)


def first_problem(problems: Sequence[tf.Tensor]) -> tf.Tensor:
    """["", "a"], ["b", "c"] -> ["b", "a"]."""
    first, *others = problems
    for problem in others:
        first = tf.where(first == "", problem, first)
    return first
