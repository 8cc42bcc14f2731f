"""Index of record files: their blocks and their bad records.

Making it means reading every file, so the result is kept in a folder `.checked` beside them. It
is used again while a file's size and time, or on gs:// its generation and check sum, are the same.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from speechgpt_jax import files as file_system
from speechgpt_jax.data.blocks import Block, Format, scan
from speechgpt_jax.data.packing import from_bytes, to_bytes
from speechgpt_jax.errors import UserError

logger = logging.getLogger(__name__)

FOLDER = ".checked"
# Problems listed per file.
LISTED = 20

# Problem of a blank line, which is skipped.
BLANK = b"blank"

FindProblems = Callable[[list[bytes]], np.ndarray]

# Increase it when records are checked differently or cut into other blocks.
_VERSION = 2
_FILES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class CheckedFile:
    """Blocks and problems of a file.

    Attributes:
      file: its path.
      blocks: all of its records, also blank and bad ones.
      num_records: number of records, without blank lines.
      num_bad: number of bad ones among them.
      problems: the first of them, such as "line 3: not JSON".
      version: version of the file that was read, see `files.version`.
    """

    file: str
    blocks: list[Block]
    num_records: int
    num_bad: int
    problems: list[str]
    version: list[int | str]


def check_files(
    files: Sequence[str],
    format_: Format,
    check: str = "",
    find_problems: FindProblems | None = None,
) -> Iterator[CheckedFile | UserError]:
    """Blocks and problems of each file, or the error if it is damaged; files are read in parallel.

    Args:
      files, format_: what to read.
      check: name of the check; files that passed it are not checked again.
      find_problems: records -> problem of each, b"" if it is good; None: there are none.
    """
    remembered = _Remembered(f"{_VERSION} {check}")
    with (
        concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as readers,
        concurrent.futures.ThreadPoolExecutor() as checkers,
    ):

        def find(file: str) -> CheckedFile | UserError:
            if known := remembered.find(file):
                return known
            try:
                checked = _check(file, format_, find_problems, checkers)
            except UserError as error:
                return error
            remembered.add(checked)
            return checked

        yield from readers.map(find, files)


def _check(
    file: str,
    format_: Format,
    find_problems: FindProblems | None,
    checkers: concurrent.futures.Executor,
) -> CheckedFile:
    """Reads a file.

    Raises:
      UserError: it is damaged.
    """
    blocks: list[Block] = []
    problems: list[str] = []
    total = num_bad = num_blank = start = 0
    version = file_system.version(file)
    for (end, records), found in _map_ahead(checkers, find_problems, scan(file, format_)):
        for i in np.flatnonzero(found != b""):
            if found[i] == BLANK:
                num_blank += 1
                continue
            num_bad += 1
            if len(problems) < LISTED:
                problems.append(f"{format_.record_noun} {total + i + 1}: {found[i].decode()}")
        blocks.append(Block(file, start, end, len(records)))
        start = end
        total += len(records)
    return CheckedFile(file, blocks, total - num_blank, num_bad, problems, version)


_ScannedBlock = tuple[int, list[bytes]]


def _map_ahead(
    checkers: concurrent.futures.Executor,
    find_problems: FindProblems | None,
    blocks: Iterable[_ScannedBlock],
) -> Iterator[tuple[_ScannedBlock, np.ndarray]]:
    """(block, problems of its records), while some of the next blocks are being checked."""
    if not find_problems:
        for block in blocks:
            yield block, np.array([], object)
        return
    waiting = collections.deque()
    for block in blocks:
        waiting.append((block, checkers.submit(find_problems, block[1])))
        if len(waiting) > 32:
            block, found = waiting.popleft()
            yield block, found.result()
    for block, found in waiting:
        yield block, found.result()


class _Remembered:
    """Results of earlier calls, on disk.

    Args:
      check: what was checked.
    """

    def __init__(self, check: str):
        self._digest = hashlib.sha1(check.encode()).hexdigest()[:8]
        self._cannot_write = False
        self._lock = threading.Lock()

    def find(self, file: str) -> CheckedFile | None:
        known = self._path(file)
        if not known.exists():
            return None
        try:
            arrays = from_bytes(known.read_bytes())
            about = json.loads(arrays["about"].tobytes())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # Damaged: `file` is checked again.
        if about["version"] != file_system.version(file):
            return None
        ends = arrays["ends"].tolist()
        blocks = [Block(file, *block) for block in zip([0, *ends], ends, arrays["sizes"].tolist())]
        return CheckedFile(file, blocks, **about)

    def add(self, checked: CheckedFile) -> None:
        if self._cannot_write:
            return
        about = dataclasses.asdict(checked)
        del about["file"], about["blocks"]
        arrays: dict[str, np.ndarray] = {
            "ends": np.array([block.end for block in checked.blocks], np.int64),
            "sizes": np.array([block.num_records for block in checked.blocks], np.int32),
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        }
        path = self._path(checked.file)
        try:
            file_system.write_bytes(path, to_bytes(arrays))
        except UserError as error:
            with self._lock:  # Files are checked in parallel, and one warning is enough.
                if not self._cannot_write:
                    logger.warning("%s Each start checks the files anew.", error)
                self._cannot_write = True

    def _path(self, file: str) -> epath.Path:
        path = epath.Path(file)
        return path.parent / FOLDER / f"{path.name}.{self._digest}"
