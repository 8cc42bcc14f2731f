"""Atomic writing of files, and reading of tables with line numbers; local paths or gs://.

Only "\\n" ends a line: U+2028 and similar characters are part of the text. A byte order mark at the
start and blank lines are skipped. Reading errors are UserErrors that name the file and the line.
"""

import contextlib
import csv
import errno
import functools
import io
import itertools
import json
import logging
import operator
import os
import pathlib
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from speechgpt_jax.errors import UserError

logger = logging.getLogger(__name__)

# Files of the package: tokenizer, encoder, vocoder, language model and corpus of the demo.
ASSETS = epath.resource_path("speechgpt_jax") / "assets"
# The shipped language model: an adapter on assets/model/base, as packed runs.
SHIPPED_MODEL = str(ASSETS / "model" / "chat")
# The shipped HuBERT with its centroids, and the shipped unit vocoder with its clearest voice.
SHIPPED_HUBERT = str(ASSETS / "hubert_tiny")
SHIPPED_VOCODER = str(ASSETS / "vocoder")
SHIPPED_VOICE = "jm_kumo"

Path = str | os.PathLike


def find(path: Path) -> epath.Path:
    """`path`, or, if it does not exist, the file of that name in the installed package.

    Thus `speechgpt_jax/assets/tokenizer` is found from every working folder.
    """
    found = epath.Path(path)
    if found.parts[:2] == ("speechgpt_jax", "assets") and not found.exists():
        return ASSETS.joinpath(*found.parts[2:])
    return found


def is_remote(path: Path) -> bool:
    """Whether `path` is a URL, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def user_cache() -> pathlib.Path | None:
    """This user's cache folder, ~/.cache/speechgpt_jax; None if it can't be written."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(caches) / "speechgpt_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return None
    return folder if os.access(folder, os.W_OK) else None


class Row(NamedTuple):
    """One row of a manifest, with its `place`, "FILE:LINE", for messages."""

    place: str
    fields: dict


# ---- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[epath.Path]:
    """A temporary path to write to: renamed to `path` after the block, deleted if the block fails.

    It has the suffix of `path`. Missing folders are made. An existing file is replaced only by the
    finished one.

    Raises:
      UserError: the file can't be written: `path` is a folder, no permission, a full disk. The
        first two are raised before the block runs.
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
    """A temporary folder, renamed to `path` after the block, deleted if the block fails.

    If `path` exists, the new files are moved into it beside the old ones, so that a HuBERT and its
    centroids can share a folder.

    Raises:
      UserError: `path` holds a file of the same name already, or can't be written. If `path` is a
        file or in a read-only folder, it is raised before the block runs.
    """
    path = epath.Path(path)
    unfinished = path.parent / _unfinished(path.name)
    with _write_errors(path, unfinished):
        try:
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file")
            unfinished.mkdir(parents=True)
            yield unfinished
            children = list(unfinished.iterdir())
            if path.exists():
                refuse_existing(path, *(child.name for child in children))
            if is_remote(path):
                _move_files(unfinished, path)
            elif path.exists():
                for child in children:
                    child.rename(path / child.name)
            else:
                unfinished.rename(path)
        finally:
            with contextlib.suppress(OSError):
                if unfinished.exists():
                    unfinished.rmtree()


@contextlib.contextmanager
def best_effort(path: Path) -> Iterator[None]:
    """Logs that `path` can't be written, instead of failing: for plots and logs."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (UserError, *io_errors())):
            raise
        logger.warning("%s can't be written: %s", path, error)


@contextlib.contextmanager
def written_locally(path: Path) -> Iterator[pathlib.Path]:
    """A local path for a file or folder whose writer knows no gs://; it is then copied to `path`.

    If `path` is local, it is that path itself.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        written = pathlib.Path(folder) / epath.Path(path).name
        yield written
        if written.is_dir():
            for file in written.rglob("*"):
                if file.is_file():
                    copy = epath.Path(path) / file.relative_to(written)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("rb") as source, copy.open("wb") as target:
                        shutil.copyfileobj(source, target, 8 << 20)
        elif written.exists():
            epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
            epath.Path(written).copy(path, overwrite=True)


def _move_files(folder: epath.Path, target: epath.Path) -> None:
    """Moves all files of a folder on a bucket.

    If a bucket refuses TensorFlow's first request, TensorFlow mistakes a folder for a file and
    can't rename it. So the files are renamed one by one.
    """
    children = list(folder.iterdir())
    # Subfolders first: Orbax's file that marks a step as complete is beside them.
    for child in sorted(children, key=lambda child: not child.is_dir()):
        if child.is_dir():
            _move_files(child, target / child.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            child.rename(target / child.name)


def _unfinished(name: str) -> str:
    """A unique temporary name, short enough for every file system."""
    return f".{name[:40]}.{uuid.uuid4().hex[:8]}.part"


@contextlib.contextmanager
def _write_errors(path: epath.Path, unfinished: epath.Path) -> Iterator[None]:
    """Turns failures to write `unfinished` into a UserError about `path`.

    Other errors in the block, such as a missing input file, are raised unchanged.
    """
    try:
        yield
    except io_errors() as error:
        name = getattr(error, "filename", None)
        if not (name is None or _is_within(unfinished, name) or _is_within(name, unfinished)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be written: {reason}.") from error


def _is_within(path: object, folder: object) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def io_errors() -> tuple[type[Exception], ...]:
    """Exceptions with which Python and the libraries imported so far report a failed write."""
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
    """Raises a UserError if `folder` holds one of `names`; to be called before long work."""
    for name in names:
        if (epath.Path(folder) / name).exists():
            raise UserError(f"{folder}/{name} exists; name another folder or remove it.")


def check_writable_folder(path: Path) -> None:
    """Raises a UserError if a local folder `path` can neither be written to nor made."""
    path = os.fspath(path)
    if is_remote(path):
        return
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"{path} can't be a folder: {existing} is a file; name another folder.")
    try:
        # Permission bits don't show a read-only disk, nor that root can't write in /proc.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}.") from error


def check_writable_file(path: Path) -> None:
    """Raises a UserError if a local file `path` can't be written; it may exist."""
    path = os.fspath(path)
    if os.path.isdir(path):
        raise UserError(f"{path} can't be a file: it is a folder; name a file in it.")
    check_writable_folder(os.path.dirname(path) or ".")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a UserError says why it can't be written."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """The same for text, as UTF-8."""
    write_bytes(path, text.encode())


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """The same for rows of JSON values, one per line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# ---- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[pathlib.Path]:
    """A local copy of a file or a folder, for readers that know no gs://; deleted after the block.

    If `path` is local, it is that path itself, whether or not it exists. Subfolders of a folder are
    not copied.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    remote = epath.Path(path)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / remote.name
        if remote.is_dir():
            local.mkdir()
            for file in remote.iterdir():
                if not file.is_dir():
                    file.copy(local / file.name)
        elif remote.exists():
            remote.copy(local)
        yield local


def read_bytes(path: Path, expected: str = "a file") -> bytes:
    """The content of a file; the error message says that `expected` was expected."""
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error}); expected {expected}.") from error


def read_part(path: Path, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file; fewer if it ends before."""
    if _is_in_bucket(path):  # TensorFlow would fetch the 64 MB that follow.
        return _object(path).download_as_bytes(start=start, end=end - 1, checksum=None)
    with epath.Path(path).open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def version(path: Path) -> list[int | str]:
    """Changes with the content of a file: its size and time.

    Of an object on gs:// they are size, generation and check sum (CRC32C, in base64).
    """
    if _is_in_bucket(path):
        described = _object(path)
        described.reload()
        return [described.size, described.generation, described.crc32c]
    if is_remote(path):
        found = epath.Path(path).stat()
        return [found.length, found.mtime]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _is_in_bucket(path: Path) -> bool:
    return os.fspath(path).startswith("gs://")


def _object(path: Path):
    """google-cloud-storage's Blob of a path on gs://."""
    bucket, _, name = os.fspath(path).removeprefix("gs://").partition("/")
    return _bucket(bucket).blob(name)


@functools.cache
def _bucket(name: str):
    from google.cloud import storage

    return storage.Client().bucket(name)


def read_json(path: Path, expected: str = "a JSON file") -> dict:
    """The JSON object in a file."""
    data = read_bytes(path, expected)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); expected {expected}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def keep_settings(path: Path, settings: dict, writes: bool = True) -> None:
    """Saves the settings of a folder, or checks that they equal those with which it was begun.

    Args:
      path: the file of the settings.
      settings: JSON values.
      writes: False: only compare; for all processes but the first.

    Raises:
      UserError: the file exists, from other settings.
    """
    if not epath.Path(path).exists():
        if writes:
            write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    settings = json.loads(json.dumps(settings))
    begun = read_json(path, "the settings of an earlier run")
    for name in sorted(begun.keys() | settings.keys()):
        if begun.get(name) != settings.get(name):
            raise UserError(
                f"{os.path.dirname(os.fspath(path))} was begun with {name} {begun.get(name)!r}, now"
                f" it is {settings.get(name)!r}; continue with the same, or name another folder."
            )


def read_lines(path: Path, expected: str = "a text file") -> list[str]:
    """The lines of a UTF-8 text file, without blank ones."""
    data = read_bytes(path, expected)
    return [text for _, text in _texts(io.BytesIO(data), str(path)) if text.strip()]


def read_rows(path: Path, required: Sequence[str] = ()) -> list[Row]:
    """The rows of a table, in the format of its suffix.

    .tsv, .csv    a row of column names, then cells, quoted as in CSV; a .tsv may also have
                  fairseq's layout: a folder on the first line, then `relative/path<TAB>samples`,
                  read as the fields `path` and `samples`
    others        JSONL: one object per line

    Args:
      path: of the table.
      required: fields that every row must have as text.

    Raises:
      UserError: there is no such file, a row can't be parsed, or it lacks a required field.
    """
    data = read_bytes(path, "a table: JSONL, .tsv or .csv")
    return list(parse_rows(io.BytesIO(data), str(path), required))


def read_manifest(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a table of recordings, of one split if given, with their full `path`.

    Raises:
      UserError: the table can't be read, a row has no `path`, or there are no rows.
    """
    rows = [row.fields for row in read_rows(path, ("path",))]
    if not rows:
        raise UserError(f"{path} has no rows; expected one per recording.")
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = sorted({str(row.get("split")) for row in rows})
        raise UserError(f"{path} has no rows of split {split!r}; it has {', '.join(splits)}.")
    return [row | {"path": resolve(row["path"], path)} for row in chosen]


def check_fields(rows: Iterable[Mapping], fields: Sequence[str]) -> None:
    """Raises a UserError if a row of a manifest lacks one of `fields`, or its type is wrong."""
    for row in rows:
        name = row.get("path", "a row")
        if missing := set(fields) - row.keys():
            raise UserError(
                f"{name} has no {', '.join(sorted(missing))}; expected {', '.join(fields)}, as"
                " tools.extract_units writes them."
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


def check_other_file(output: Path, given: Path) -> None:
    """Raises a UserError if a file to be written is the one to be read."""
    if os.path.realpath(output) == os.path.realpath(given):
        raise UserError(f"{output} is the input; name another file for the output.")


def resolve(path: str, manifest: Path) -> str:
    """The full path of a recording; a relative `path` starts at the manifest's folder."""
    return path if is_remote(path) else os.path.join(os.path.dirname(os.fspath(manifest)), path)


def parse_rows(lines: Iterable[bytes], name: str, required: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of an open file; `read_rows` describes the formats.

    Args:
      lines: a binary file.
      name: of the file, for its suffix and for messages.
      required: fields that every row must have as text.
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
    """Lines numbered from 1, without line ends and byte order mark."""
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
            raise UserError(
                f"{name}:{before + 1}: not a row of cells ({error}); a cell that holds quotes is"
                ' written as "so ""quoted"" here".'
            ) from error
        if any(cell.strip() for cell in cells):
            yield before + 1, cells
