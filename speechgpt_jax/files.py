"""Atomic writing of files, and reading of them; local paths or gs://.

Only "\\n" ends a line: U+2028 and similar characters are part of the text. A byte order mark at the
start is skipped. Reading errors are UserErrors that name the file.
"""

import collections
import contextlib
import errno
import functools
import io
import json
import logging
import operator
import os
import pathlib
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from etils import epath

from speechgpt_jax.errors import UserError

logger = logging.getLogger(__name__)

Path = str | os.PathLike
AnyPath = TypeVar("AnyPath", bound=os.PathLike)

# Files that are sent to or fetched from a bucket at a time.
FILES_AT_ONCE = 16


def is_remote(path: Path) -> bool:
    """Whether `path` is a URL, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def check_url(path: Path) -> None:
    """Raises a UserError if `path` is a URL of a file system that can't be read here."""
    try:
        found = epath.Path(path)
        # epath knows s3:// and others, and the libraries that it reads them by may not.
        if is_remote(path) and not is_in_bucket(path):
            found.exists()
    except KeyError as error:
        raise UserError(
            f"{path}: {error} is no file system; give a local path or gs://."
        ) from error
    except Exception as error:
        if not isinstance(error, (ImportError, *io_errors())):
            raise
        raise UserError(
            f"{path}: its file system can't be read here ({error}); give a local path or gs://."
        ) from error


def check_local(path: Path) -> None:
    """Raises a UserError if `path` is a URL."""
    if is_remote(path):
        raise UserError(
            f"expected a path on this machine, got {path}; give a local one"
            " (`gcloud storage cp` copies from and to buckets)."
        )


def user_cache() -> pathlib.Path | None:
    """This user's cache folder, ~/.cache/speechgpt_jax; None if it can't be written."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(caches) / "speechgpt_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return None
    return folder if os.access(folder, os.W_OK) else None


# ---- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[epath.Path]:
    """A temporary path to write to: renamed to `path` after the block, deleted if the block fails.

    It has the suffix of `path`. Missing folders are made, and stay if the block succeeds. An
    existing file is replaced only by the finished one.

    Raises:
      UserError: the file can't be written: `path` is a folder, no permission, a full disk. The
        first two are raised before the block runs.
    """
    check_url(path)
    path = epath.Path(path)
    unfinished = path.parent / f"{_unfinished(path.stem)}{path.suffix}"
    with _write_errors(path, unfinished):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with made_folder(path.parent):
            try:
                unfinished.write_bytes(b"")
                yield unfinished
                unfinished.replace(path)
            finally:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Makes a folder and its missing parents; if the block fails, removes those it has made.

    Folders that hold files by then stay.
    """
    folder = epath.Path(path)
    # A bucket has no folders.
    missing = [] if is_remote(path) else [x for x in (folder, *folder.parents) if not x.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[epath.Path]:
    """A temporary folder, renamed to `path` after the block, deleted if the block fails.

    If `path` exists, the new files are moved into it beside the old ones, so that a HuBERT and its
    centroids can share a folder.

    Raises:
      UserError: `path` holds a file of the same name already, or can't be written. If `path` is a
        file or in a read-only folder, it is raised before the block runs.
    """
    check_url(path)
    path = epath.Path(path)
    unfinished = path.parent / _unfinished(path.name)
    with _write_errors(path, unfinished):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        with made_folder(path.parent):
            try:
                unfinished.mkdir()
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


def _move_files(folder: epath.Path, target: epath.Path) -> None:
    """Moves all files of a folder on a bucket.

    If a bucket refuses TensorFlow's first request, TensorFlow mistakes a folder for a file and
    can't rename it. So the files are renamed one by one.
    """
    targets = {file: target / file.relative_to(folder) for file in files_below(folder)}
    transfer(targets, lambda file: file.rename(targets[file]))


def transfer(targets: Mapping[AnyPath, epath.Path], send: Callable[[AnyPath], object]) -> None:
    """Moves or copies files to a bucket, several at a time, after their folders are made.

    Files in the deepest folders come first: Orbax's file that marks a step as complete is above
    those that it speaks of.

    Args:
      targets: {file: its new path}.
      send: moves or copies one of the files.
    """
    by_depth = collections.defaultdict(list)
    for file, path in targets.items():
        by_depth[len(path.parts)].append(file)
    folders = {path.parent for path in targets.values()}
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(lambda folder: folder.mkdir(parents=True, exist_ok=True), folders))
        for depth in sorted(by_depth, reverse=True):
            list(pool.map(send, by_depth[depth]))


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


def refuse_foreign(folder: Path, settings: str, *names: str) -> None:
    """Raises a UserError if `folder` holds one of `names` that no earlier run wrote.

    Args:
      folder: folder that a run writes to.
      settings: name of the file that a run writes first, such as "plan.json".
      names: names of files that the run would replace.
    """
    if (epath.Path(folder) / settings).exists():
        return
    for name in names:
        if (epath.Path(folder) / name).exists():
            raise UserError(
                f"{folder}/{name} exists and is not of an earlier run; name another folder."
            )


def check_writable_folder(path: Path) -> None:
    """Raises a UserError if a local folder `path` can neither be written to nor made.

    Of a URL only the file system is checked.
    """
    path = os.fspath(path)
    check_url(path)
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


def check_other_file(output: Path, given: Path) -> None:
    """Raises a UserError if a file to be written is the one to be read."""
    if os.path.realpath(output) == os.path.realpath(given):
        raise UserError(f"{output} is the input; name another file for the output.")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a UserError says why it can't be written."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """The same for text, as UTF-8."""
    write_bytes(path, text.encode())


# ---- reading -------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    """Sorted names of what a folder holds; none if it doesn't exist."""
    folder = epath.Path(folder)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def files_below(folder: Path) -> list[epath.Path]:
    """All files in a folder and its subfolders, sorted."""
    return sorted(parent / name for parent, _, names in epath.Path(folder).walk() for name in names)


def read_bytes(path: Path, expected: str = "a file") -> bytes:
    """The content of a file; the error message says that `expected` was expected."""
    check_url(path)
    try:
        return epath.Path(path).read_bytes()
    except io_errors() as error:
        raise UserError(f"{path} can't be read ({error}); expected {expected}.") from error


def read_part(path: Path, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file; fewer if it ends before."""
    if is_in_bucket(path):  # TensorFlow would fetch the 64 MB that follow.
        return _object(path).download_as_bytes(start=start, end=end - 1, checksum=None)
    with epath.Path(path).open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def version(path: Path) -> list[int | str]:
    """Version of a file, which changes with its content: [size, time].

    Of an object on gs:// they are size, generation and check sum (CRC32C, in base64).
    """
    if is_in_bucket(path):
        described = _object(path)
        described.reload()
        return [described.size, described.generation, described.crc32c]
    if is_remote(path):
        found = epath.Path(path).stat()
        return [found.length, found.mtime]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def is_in_bucket(path: Path) -> bool:
    """Whether `path` is on gs://."""
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
      settings: JSON values. Those that are SHA-256 digests, of long ones, are not shown.
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
            folder = os.path.dirname(os.fspath(path))
            if re.fullmatch("[0-9a-f]{64}", str(settings.get(name))):
                raise UserError(f"{folder} was begun with different {name}; name another folder.")
            raise UserError(
                f"{folder} was begun with {name} {begun.get(name)!r}, now it is"
                f" {settings.get(name)!r}; continue with the same, or name another folder."
            )


def read_lines(path: Path, expected: str = "a text file") -> list[str]:
    """The lines of a UTF-8 text file, without blank ones."""
    data = read_bytes(path, expected)
    return [text for _, text in numbered_lines(io.BytesIO(data), str(path)) if text.strip()]


def numbered_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Lines of an open file, numbered from 1, without line ends and byte order mark.

    Args:
      lines: a binary file.
      name: name of the file, for messages.

    Raises:
      UserError: a line is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: not UTF-8 ({error}); save it as UTF-8.") from error
        yield number, text.removesuffix("\n").removesuffix("\r")
