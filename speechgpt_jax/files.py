"""Files: written whole or not at all, read with the number of each line; local paths or gs://.

Lines end at "\\n" alone: U+2028 and the like are part of a text. A byte order mark at the start and
blank lines are skipped. What can't be read raises a UserError that names the file and the line.
"""

import contextlib
import csv
import errno
import io
import itertools
import json
import operator
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from speechgpt_jax.errors import UserError

# What the package ships: tokenizer, encoder, vocoder and corpus of the demo.
ASSETS = epath.resource_path("speechgpt_jax") / "assets"

Path = str | os.PathLike


def find(path: Path) -> epath.Path:
    """`path`, or, where nothing is there, what the package ships under that name.

    So that `speechgpt_jax/assets/tokenizer` is found from every working folder.
    """
    found = epath.Path(path)
    if found.parts[:2] == ("speechgpt_jax", "assets") and not found.exists():
        return ASSETS.joinpath(*found.parts[2:])
    return found


class Row(NamedTuple):
    """One row of a manifest, and where it stands: `place` is "FILE:LINE", for messages."""

    place: str
    fields: dict


# ---- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[epath.Path]:
    """A path to write to; when the block ends well the file gets the name `path`, else it is gone.

    Its suffix is that of `path`. Missing folders are made. An earlier file of the name stays until
    the new one is whole.

    Raises:
      UserError: the file can't be written: a folder of that name, no permission, a full disk. What
        can be known beforehand is raised before the block runs.
    """
    path = epath.Path(path)
    unfinished = path.parent / f"{_unfinished(path.stem)}{path.suffix}"
    with _write_errors(path, unfinished):
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(b"")
            yield unfinished
            unfinished.replace(path)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[epath.Path]:
    """A folder to write into; when the block ends well it becomes `path`, otherwise it is gone.

    Files that `path` holds already stay, so that a HuBERT and its centroids can share a folder.

    Raises:
      UserError: `path` holds a file of a new file's name already, or can't be written. That `path`
        is a file or in a read-only folder is raised before the block runs.
    """
    path = epath.Path(path)
    unfinished = path.parent / _unfinished(path.name)
    with _write_errors(path, unfinished):
        try:
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file")
            unfinished.mkdir(parents=True)
            yield unfinished
            if path.exists():
                refuse_existing(path, *(child.name for child in unfinished.iterdir()))
                for child in unfinished.iterdir():
                    child.rename(path / child.name)
            else:
                unfinished.rename(path)
        finally:
            with contextlib.suppress(OSError):
                if unfinished.exists():
                    unfinished.rmtree()


def _unfinished(name: str) -> str:
    """A name that nobody else writes to, short enough for every file system."""
    return f".{name[:40]}.{uuid.uuid4().hex[:8]}.part"


@contextlib.contextmanager
def _write_errors(path: epath.Path, unfinished: epath.Path) -> Iterator[None]:
    """Turns failures to write `unfinished` into a UserError about `path`.

    Other errors of the block pass, such as an input file that isn't there.
    """
    try:
        yield
    except _io_errors() as error:
        name = getattr(error, "filename", None)
        if not (name is None or _is_within(unfinished, name) or _is_within(name, unfinished)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be written: {reason}.") from error


def _is_within(path: object, folder: object) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def _io_errors() -> tuple[type[Exception], ...]:
    """The exceptions by which Python and the libraries imported so far report a failed write."""
    found: list[type[Exception]] = [OSError]
    for module, name in (
        ("tensorflow", "errors.OpError"),
        ("safetensors", "SafetensorError"),
        ("soundfile", "LibsndfileError"),
    ):
        if module in sys.modules:
            found.append(operator.attrgetter(name)(sys.modules[module]))
    return tuple(found)


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); expected {expected}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def read_lines(path: Path, expected: str = "a text file") -> list[str]:
    """The lines of a UTF-8 text file, without blank ones."""
    data = read_bytes(path, expected)
    return [text for _, text in _texts(io.BytesIO(data), str(path)) if text.strip()]


def read_rows(path: Path, required: Sequence[str] = ()) -> list[Row]:
    """The rows of a table, by the suffix of its name.

    .tsv, .csv    cells under named columns, quoted where need be as in CSV; a .tsv may also have
                  fairseq's layout: a folder on the first line, then `relative/path<TAB>samples`,
                  which gives the fields `path` and `samples`
    others        JSONL: an object per line

    Args:
      path: of the table.
      required: fields that every row must have, as texts.

    Raises:
      UserError: there is no such file, a row can't be read, or it lacks a required text.
    """
    data = read_bytes(path, "a table: JSONL, .tsv or .csv")
    return list(parse_rows(io.BytesIO(data), str(path), required))


def read_manifest(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a table of recordings (of one split, if given), with full `path`s.

    Raises:
      UserError: as `read_rows`; a row has no `path`; there are no rows.
    """
    rows = [row.fields for row in read_rows(path, ("path",))]
    if not rows:
        raise UserError(f"{path} has no rows; expected one per recording.")
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = sorted({str(row.get("split")) for row in rows})
        raise UserError(f"{path} has no rows of split {split!r}; it has {', '.join(splits)}.")
    return [row | {"path": resolve(row["path"], path)} for row in chosen]


def resolve(path: str, manifest: Path) -> str:
    """The full path of a recording whose row in `manifest` has `path`: relative to its folder."""
    return path if "://" in path else os.path.join(os.path.dirname(os.fspath(manifest)), path)


def parse_rows(lines: Iterable[bytes], name: str, required: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of the open file called `name`; as `read_rows`, one at a time.

    `lines` are those of a binary file, which end at "\\n" alone.
    """
    texts = _texts(lines, name)
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
                got = "is missing" if field not in row.fields else f"must be text, got {value!r}"
                raise UserError(f"{row.place}: {field} {got}.")
        yield row


NumberedTexts = Iterator[tuple[int, str]]


def _texts(lines: Iterable[bytes], name: str) -> NumberedTexts:
    """Numbered lines from 1, without their ends and the byte order mark."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: not UTF-8 ({error}); save it as UTF-8.") from error
        yield number, text.removesuffix("\n").removesuffix("\r")


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
    filled = ((number, text) for number, text in texts if text.strip())
    start = list(itertools.islice(filled, 1))
    if start and "\t" not in start[0][1]:
        start += itertools.islice(filled, 1)
        if len(start) == 2 and re.fullmatch(r"[^\t]+\t\d+\s*", start[1][1]):
            yield from _parse_fairseq(start[0][1], itertools.chain(start[1:], filled), name)
            return
    yield from _parse_cells(itertools.chain(start, texts), name, "\t")


def _parse_fairseq(folder: str, texts: NumberedTexts, name: str) -> Iterator[Row]:
    for number, text in texts:
        path, _, samples = text.partition("\t")
        if not samples.strip().isdecimal():
            raise UserError(f"{name}:{number}: expected `path<TAB>samples`, got {text[:60]!r}.")
        fields = {"path": os.path.join(folder.strip(), path), "samples": int(samples)}
        yield Row(f"{name}:{number}", fields)


def _parse_cells(texts: NumberedTexts, name: str, delimiter: str) -> Iterator[Row]:
    """Rows of cells: `"a ""b"" c"` is `a "b" c`; a quoted cell may have line ends in it."""
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
    """The names of the columns, which must differ."""
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


def _cells(texts: NumberedTexts, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and the number of its first line; rows of blank cells are left out."""
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
            raise UserError(
                f"{name}:{before + 1}: not a row of cells ({error}); a cell that holds quotes is"
                ' written as "so ""quoted"" here".'
            ) from error
        if any(cell.strip() for cell in cells):
            yield before + 1, cells
