"""Files: written whole or not at all, read with the number of each line; local paths or gs://.

Lines end at "\\n" alone, a byte order mark at the start and blank lines are skipped, and whatever
can't be read raises a UserError that names the file and the line.
"""

import contextlib
import csv
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from speechgpt_jax.errors import UserError

# What the package ships: tokenizer, encoder, vocoder and corpus of the demo.
ASSETS = epath.resource_path("speechgpt_jax") / "assets"

Path = str | os.PathLike


class Row(NamedTuple):
    """One row of a manifest, and where it stands: `place` is "FILE:LINE", for messages."""

    place: str
    fields: dict


# ---- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[epath.Path]:
    """A path to write to; when the block ends well the file gets the name `path`, else it is gone.

    Its suffix is that of `path`. Missing folders are made.

    Raises:
      UserError: the file can't be written: a folder of that name, no permission, a full disk.
    """
    path = epath.Path(path)
    unfinished = path.parent / f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[epath.Path]:
    """A folder to write into; when the block ends well it becomes `path`, otherwise it is gone.

    Files that `path` holds already stay, so that a HuBERT and its centroids can share a folder.

    Raises:
      UserError: `path` holds a file of a new file's name already, or can't be written.
    """
    path = epath.Path(path)
    unfinished = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if path.exists():
            refuse_existing(path, *(child.name for child in unfinished.iterdir()))
            for child in unfinished.iterdir():
                child.rename(path / child.name)
        else:
            unfinished.rename(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}.") from error
    finally:
        if unfinished.exists():
            unfinished.rmtree()


def refuse_existing(folder: Path, *names: str) -> None:
    """Raises a UserError if `folder` holds one of `names`: before hours of work, not after."""
    for name in names:
        if (epath.Path(folder) / name).exists():
            raise UserError(f"{folder}/{name} exists; name another folder or remove it.")


def check_writable_folder(path: Path) -> None:
    """Raises a UserError if a local folder `path` can neither be written to nor made."""
    path = os.fspath(path)
    if "://" in path:
        return
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"{path} can't be a folder: {existing} is a file.")
    try:
        # Permissions don't tell everything: of a read-only disk, of root in /proc.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}.") from error


def check_writable_file(path: Path) -> None:
    """Raises a UserError if a local file `path` can't be written; it may exist."""
    path = os.fspath(path)
    if os.path.isdir(path):
        raise UserError(f"{path} can't be a file: it is a folder.")
    check_writable_folder(os.path.dirname(path) or ".")


def write_bytes(path: Path, data: bytes) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# ---- reading -------------------------------------------------------------------------------------


def read_bytes(path: Path, expected: str = "a file") -> bytes:
    """The content of a file; `expected` says in the message what it should be."""
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error}); expected {expected}.") from error


def read_json(path: Path, expected: str = "a JSON file") -> dict:
    """A JSON object."""
    data = read_bytes(path, expected)
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected {expected}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def read_rows(path: Path, required: Sequence[str] = ()) -> list[Row]:
    """The rows of a manifest: JSONL, or in a .tsv file cells under named columns.

    Args:
      path: of the manifest.
      required: fields that every row must have, as texts.

    Raises:
      UserError: there is no such file, a row can't be read, or it lacks a required text.
    """
    data = read_bytes(path, "a manifest: JSONL, or .tsv with named columns")
    return list(parse_rows(io.BytesIO(data), str(path), required))


def parse_rows(lines: Iterable[bytes], name: str, required: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of the open file called `name`; as `read_rows`, one at a time.

    `lines` are those of a binary file, which end at "\\n" alone.
    """
    parse = _parse_tsv if name.endswith(".tsv") else _parse_jsonl
    for row in parse(_texts(lines, name), name):
        for field in required:
            value = row.fields.get(field)
            if not isinstance(value, str):
                got = "is missing" if field not in row.fields else f"must be text, got {value!r}"
                raise UserError(f"{row.place}: {field} {got}.")
        yield row


def _texts(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1, without the byte order mark; blank ones are left out."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: not UTF-8 ({error}); save it as UTF-8.") from error
        if text.strip():
            yield number, text


def _parse_jsonl(texts: Iterable[tuple[int, str]], name: str) -> Iterator[Row]:
    for number, text in texts:
        place = f"{name}:{number}"
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise UserError(f"{place}: {text[:60]!r} is not a JSON object: {error}.") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: expected a JSON object, got {text[:60]!r}.")
        yield Row(place, fields)


def _parse_tsv(texts: Iterable[tuple[int, str]], name: str) -> Iterator[Row]:
    """Cells may be quoted as in CSV: `"a ""b"" c"` is `a "b" c`. A quoted cell ends in its line."""
    columns = None
    for number, text in texts:
        place = f"{name}:{number}"
        try:
            [cells] = csv.reader([text.rstrip("\r\n")], dialect="excel-tab", strict=True)
        except csv.Error as error:
            raise UserError(f"{place}: {text[:60]!r} is not a row of cells: {error}.") from error
        if columns is None:
            columns = cells
        elif len(cells) != len(columns):
            raise UserError(
                f"{place}: expected {len(columns)} cells ({', '.join(columns)}), got {len(cells)}:"
                f" {text[:60]!r}."
            )
        else:
            yield Row(place, dict(zip(columns, cells)))
