"""Manifests: one recording (or dialogue) a row, as JSONL or, in a .tsv file, under named columns.

A row of recordings has at least `path`, relative to the folder of the manifest; what else it has
(`text`, `speaker`, `split`, ...) is for whoever reads it.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator

from speechgpt_jax.errors import UserError


def read_manifest(path: str | pathlib.Path, split: str | None = None) -> list[dict]:
    """The rows (of one split), their `path`s made relative to the working folder, not the file.

    Raises:
      UserError: a row can't be read or names no `path`.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        rows = list(parse_rows(file, str(path), ("path",)))
    for row in rows:
        row["path"] = str(path.parent / row["path"])
    return [row for row in rows if split is None or row.get("split") == split]


def parse_rows(lines: Iterable[bytes], name: str, required: tuple[str, ...]) -> Iterator[dict]:
    """The rows of the file called `name`, which says by .tsv that the first line names columns.

    Raises:
      UserError: naming the line that can't be read, or that lacks a required text.
    """
    columns = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if not name.endswith(".tsv"):
                row = json.loads(line)
            elif columns is None:
                columns = _cells(line)
                continue
            else:
                row = dict(zip(columns, _cells(line), strict=True))
            unnamed = [field for field in required if not isinstance(row[field], str)]
        except (ValueError, KeyError, TypeError) as error:
            form = "a line of columns" if name.endswith(".tsv") else "a JSON object"
            raise UserError(
                f"{name}:{number}: expected {form} with {', '.join(required)}, got "
                f"{line[:60]!r} ({type(error).__name__}: {error})."
            ) from error
        if unnamed:
            raise UserError(f"{name}:{number}: {unnamed[0]} must be text, got {row[unnamed[0]]!r}.")
        yield row


def _cells(line: bytes) -> list[str]:
    return line.decode("utf-8-sig").rstrip("\r\n").split("\t")
