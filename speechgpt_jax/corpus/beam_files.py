"""Files of Beam's workers, through Beam's own file systems: local disks, gs:// and others."""

import contextlib
import glob
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_remote, made_folder
from speechgpt_jax.manifests import Row, parse_rows

# Beam warns about cloud libraries that are not installed: on import and later.
logging.disable(logging.WARNING)
import apache_beam as beam  # noqa: E402, F401 (imported from here by the other modules)
from apache_beam.io.filesystems import FileSystems  # noqa: E402

logging.disable(logging.NOTSET)
logging.getLogger("apache_beam").setLevel(logging.ERROR)

# Errors of Beam's file systems; it asserts that the library of a cloud is installed.
FAILURES = (OSError, AssertionError)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write bytes to, which gets the name `path` if the block ends without an error.

    Raises:
      UserError: the file can't be written.
    """
    unfinished = f"{path}.{uuid.uuid4().hex}.part"
    folder = contextlib.nullcontext() if is_remote(path) else made_folder(os.path.dirname(path))
    try:
        with folder:
            try:
                with FileSystems.create(unfinished) as file:
                    yield file
                FileSystems.rename([unfinished], [path])
            except BaseException:
                with contextlib.suppress(OSError):
                    delete([unfinished])
                raise
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}.") from error


def delete_unfinished(folder: str) -> None:
    """Deletes what `whole_file` left in a folder when it was killed, and no other file."""
    parts = find_files(folder, "*.part")
    delete([path for path in parts if re.search(r"\.[0-9a-f]{32}\.part$", path)])


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Writes lines that have no line end in them."""
    with whole_file(path) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


def read_lines(path: str) -> list[str]:
    """The lines that `write_lines` wrote."""
    with FileSystems.open(path) as file:
        return file.read().decode().split("\n")[:-1]


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns the failures of Beam's file systems into a UserError about `path`."""
    try:
        yield
    except FAILURES as error:
        raise UserError(f"{path} can't be read: {error}.") from error


def read_table(path: str, required: Sequence[str]) -> Iterator[Row]:
    """Rows of a JSONL, TSV or CSV file, see `manifests.parse_rows`.

    Raises:
      UserError: the file is missing or can't be read.
    """
    with reading(path):
        if not FileSystems.exists(path):
            raise UserError(f"There is no file {path}; expected JSONL, TSV or CSV.")
        with FileSystems.open(path) as lines:
            yield from parse_rows(lines, path, required)


def find_files(folder: str, pattern: str) -> list[str]:
    """Sorted paths of the files in `folder` that match; `**` also matches in its subfolders."""
    with reading(folder):
        found = FileSystems.match([FileSystems.join(glob.escape(folder), pattern)])
    return sorted(file.path for file in found[0].metadata_list)


def delete(paths: Sequence[str]) -> None:
    """Deletes those of the files that exist."""
    found = [glob.escape(path) for path in paths if FileSystems.exists(path)]
    if found:
        FileSystems.delete(found)


def absolute(path: str) -> str:
    """The absolute path, or the URL itself: workers may run in another folder.

    Raises:
      UserError: Beam knows no file system of this URL.
    """
    if not is_remote(path):
        return os.path.abspath(path)
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} can't be reached: {error}") from error
    return path
