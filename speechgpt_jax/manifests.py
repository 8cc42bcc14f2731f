"""Tables of recordings (manifests) and of other rows: JSONL, .tsv and .csv, local or on gs://.

Every row keeps its place, so that a message can name the file and the line.
"""

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import Path, is_remote, numbered_lines, read_bytes, write_text

NumberedTexts = Iterator[tuple[int, str]]
# Fields of a row that name recordings.
PATHS = ("path", "reference")


class Row(NamedTuple):
    """One row of a manifest, with its `place`, "FILE:LINE", for messages."""

    place: str
    fields: dict


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Writes rows of JSON values, one per line, whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_manifest(path: Path, rows: Iterable[Mapping]) -> None:
    """Writes rows with full paths as JSONL.

    Paths become relative to the file's folder, unless they or the file are on a bucket.
    """
    folder = os.path.dirname(os.fspath(path)) or "."

    def relative(recording: str) -> str:
        if is_remote(recording):
            return recording
        return os.path.abspath(recording) if is_remote(path) else os.path.relpath(recording, folder)

    write_jsonl(path, [_map_paths(row, relative) for row in rows])


def with_units(row: Mapping, units: np.ndarray, durations: np.ndarray) -> dict:
    """A row of a manifest with its recording's reduced units [N] and durations [N] in frames."""
    return {**row, "units": units.tolist(), "durations": durations.tolist()}


def read_rows(path: Path, required: Sequence[str] = ()) -> list[Row]:
    """The rows of a table, in the format of its suffix.

    .tsv, .csv    a row of column names, then cells, quoted as in CSV; a .tsv may also have
                  fairseq's layout: a folder on the first line, then `relative/path<TAB>samples`,
                  read as the fields `path` and `samples`
    others        JSONL: one object per line

    Args:
      path: path of the table.
      required: fields that every row must have as text.

    Raises:
      UserError: there is no such file, a row can't be parsed, or it lacks a required field.
    """
    data = read_bytes(path, "a table: JSONL, .tsv or .csv")
    return list(parse_rows(io.BytesIO(data), str(path), required))


def read_manifest(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a table of recordings, of one split if given, with full paths.

    Raises:
      UserError: the table can't be read, a row has no `path`, or there are no rows.
    """
    rows = [row.fields for row in read_rows(path, ("path",))]
    if not rows:
        raise UserError(f"{path} has no rows; expected one per recording.")
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = sorted({str(row["split"]) for row in rows if row.get("split") is not None})
        has = f"it has {', '.join(splits)}" if splits else "its rows have no `split`; add it"
        raise UserError(f"{path} has no rows of split {split!r}; {has}.")
    return [with_full_paths(row, path) for row in chosen]


def with_full_paths(row: Mapping, manifest: Path) -> dict:
    """A row whose `path` and, if it has one, `reference` start at the manifest's folder.

    The reference is another speaker's recording of the same text.

    Raises:
      UserError: one of them is no text.
    """
    check_fields([row], [name for name in PATHS if name in row])
    return _map_paths(row, lambda path: resolve(path, manifest))


def _map_paths(row: Mapping, function: Callable[[str], str]) -> dict:
    return {**row, **{name: function(row[name]) for name in PATHS if row.get(name)}}


def is_perturbed(row: Mapping) -> bool:
    """Whether a recording was changed in speed, room and microphone (`demo_world.clips`)."""
    return row.get("perturbation") is not None


def check_fields(rows: Iterable[Mapping], fields: Sequence[str]) -> None:
    """Raises a UserError if a row of a manifest lacks one of `fields`, or its type is wrong."""
    for row in rows:
        name = row.get("path", "a row")
        if missing := set(fields) - row.keys():
            from_extraction = missing & {"units", "durations"}
            remedy = (
                " Units and durations come from tools.extract_units." if from_extraction else ""
            )
            raise UserError(
                f"{name} has no {', '.join(sorted(missing))}; expected {', '.join(fields)}.{remedy}"
            )
        for field in fields:
            expected = list if field in ("units", "durations") else str
            if not isinstance(row[field], expected):
                noun = "a list" if expected is list else "text"
                raise UserError(f"{name}: expected {field} to be {noun}, got {row[field]!r}.")


def check_recordings(rows: Iterable[Mapping], fields: Sequence[str] = ("path",)) -> None:
    """Raises a UserError if a recording that a manifest names is on this machine and missing."""
    for row in rows:
        for field in fields:
            if not is_remote(row[field]) and not os.path.isfile(row[field]):
                raise UserError(f"{row[field]} of the manifest isn't there.")


def resolve(path: str, manifest: Path) -> str:
    """The full path of a recording; a relative `path` starts at the manifest's folder."""
    return path if is_remote(path) else os.path.join(os.path.dirname(os.fspath(manifest)), path)


def parse_rows(lines: Iterable[bytes], name: str, required: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of an open file; `read_rows` describes the formats.

    Args:
      lines: a binary file.
      name: name of the file, for its suffix and for messages.
      required: fields that every row must have as text.
    """
    texts = numbered_lines(lines, name)
    if name.lower().endswith(".csv"):
        rows = _parse_cells(texts, name, ",")
    elif name.lower().endswith(".tsv"):
        rows = _parse_tsv(texts, name)
    else:
        rows = _parse_jsonl(texts, name)
    for row in rows:
        for field in required:
            value = row.fields.get(field)
            if not isinstance(value, str):
                has = ", ".join(repr(name) for name in row.fields)[:100]
                missing = f"is missing; the row has {has or 'no fields'}"
                got = missing if field not in row.fields else f"must be text, got {value!r}"
                raise UserError(f"{row.place}: {field} {got}.")
        yield row


def _parse_jsonl(texts: NumberedTexts, name: str) -> Iterator[Row]:
    for number, text in texts:
        if not text.strip():
            continue
        place = f"{name}:{number}"
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: {text[:60]!r} is not a JSON object: {error}.") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: expected a JSON object, got {text[:60]!r}.")
        yield Row(place, fields)


def _parse_tsv(texts: NumberedTexts, name: str) -> Iterator[Row]:
    # The first lines, and those of them that aren't blank: one with tabs, or two.
    start, filled = [], []
    for number, text in texts:
        start.append((number, text))
        if text.strip():
            filled.append(text)
            if "\t" in text or len(filled) == 2:
                break
    texts = itertools.chain(start, texts)
    if len(filled) == 2 and re.fullmatch(r"[^\t]+\t[-+]?[\d.]+\s*", filled[1]):
        yield from _parse_fairseq(texts, name)
    else:
        yield from _parse_cells(texts, name, "\t")


def _parse_fairseq(texts: NumberedTexts, name: str) -> Iterator[Row]:
    filled = ((number, text) for number, text in texts if text.strip())
    _, folder = next(filled)
    for number, text in filled:
        path, _, samples = text.partition("\t")
        if not re.fullmatch("[0-9]{1,15}", samples.strip()):
            raise UserError(
                f"{name}:{number}: expected `path<TAB>samples`, samples being a whole number, got "
                f"{text[:60]!r}."
            )
        fields = {"path": os.path.join(folder.strip(), path), "samples": int(samples)}
        yield Row(f"{name}:{number}", fields)


def _parse_cells(texts: NumberedTexts, name: str, delimiter: str) -> Iterator[Row]:
    """Rows of cells: `"a ""b"" c"` is `a "b" c`; a quoted cell may contain line ends."""
    columns: list[str] | None = None
    for number, cells in _cells(texts, name, delimiter):
        place = f"{name}:{number}"
        if columns is None:
            columns = _columns(cells, place)
            continue
        if not any(cells[len(columns) :]):  # Some programs end every row with a delimiter.
            cells = cells[: len(columns)]
        if len(cells) != len(columns):
            raise UserError(
                f"{place}: expected {len(columns)} cells ({', '.join(columns)}), got {len(cells)}:"
                f" {delimiter.join(cells)[:60]!r}."
            )
        yield Row(place, dict(zip(columns, cells)))


def _columns(cells: list[str], place: str) -> list[str]:
    """The column names, which must be unique."""
    columns = [cell.strip() for cell in cells]
    while not columns[-1]:
        columns.pop()
    if "" in columns:
        number = columns.index("") + 1
        raise UserError(f"{place}: column {number} has no name; name it or remove it.")
    repeated = [column for column in columns if columns.count(column) > 1]
    if repeated:
        raise UserError(f"{place}: two columns are called {repeated[0]!r}; rename one of them.")
    return columns


# Parts of csv's messages, and what to do.
_REMEDIES = (
    ("in unquoted field", "a line that ends with a carriage return only needs a line feed"),
    ("field limit", "close its quotes, or write so long a text as JSONL"),
    ("", 'a cell that holds quotes is written as "so ""quoted"" here"'),
)


def _cells(texts: NumberedTexts, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and cells of each row; rows of blank cells are skipped."""
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, text in texts:  # noqa: B007 (it is read below)
            yield text + "\n"

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        before = number
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = next(remedy for part, remedy in _REMEDIES if part in str(error))
            raise UserError(
                f"{name}:{before + 1}: not a row of cells ({error}); {remedy}."
            ) from error
        if any(cell.strip() for cell in cells):
            yield before + 1, cells
