"""Files of records, read block by block: in any order, and shuffled with few blocks in memory.

    format_ = file_format(["a.jsonl", "b.jsonl"])
    for end, records in scan("a.jsonl", format_): ...     # the blocks of a file, in their order
    read(block, format_, read_part)                       # the records of one of them
    windows = Windows(blocks, format_)
    windows.read(epoch, 0, 32)                            # the first 32 records of an epoch

The order of an epoch depends on its number only, so a position in it is two numbers.
"""

import concurrent.futures
import dataclasses
import functools
import gzip
import os
import re
import shutil
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordReader

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import read_part

# A block ends after 128 records or 1 MiB.
BLOCK_RECORDS = 128
_BLOCK_BYTES = 1 << 20
# Records are shuffled within 80 blocks, some 10,000 records.
_WINDOW_BLOCKS = 80
# The epoch whose order is that of the files.
IN_ORDER = -1

_CHUNK = 8 << 20
# units-00000-of-00004.jsonl, dialogues.jsonl.gz, speech_instruct-train.tfrecord-00000-of-00001
_FORMAT = re.compile(r"\.(jsonl|txt|tfrecord|array_record)(?:-\d+-of-\d+)?(\.gz)?$")


@dataclasses.dataclass(frozen=True)
class Format:
    """Format of files: "jsonl", "txt", "tfrecord" or "array_record", perhaps compressed."""

    name: str
    gz: bool

    @property
    def is_lines(self) -> bool:
        """Whether a record is a line of text."""
        return self.name in ("jsonl", "txt")

    @property
    def record_noun(self) -> str:
        """Noun for a record in messages."""
        return "line" if self.is_lines else "record"


class Block(NamedTuple):
    """Some records that follow one another in a file, from `start` to `end`.

    They are byte offsets, in the unpacked file if it is compressed; in an ArrayRecord file they are
    numbers of records.
    """

    file: str
    start: int
    end: int
    num_records: int


def file_format(files: Sequence[str]) -> Format:
    """The format of all files: ["a.jsonl.gz", "b.jsonl.gz"] -> Format("jsonl", gz=True).

    Raises:
      UserError: a format is unknown, or there are several.
    """
    formats = {}
    for file in files:
        match = _FORMAT.search(file)
        if not match:
            raise UserError(f"{file}: expected .jsonl, .txt, .tfrecord or .array_record.")
        formats[match.groups()] = file
    if len(formats) > 1:
        raise UserError(
            f"Files of one split have one format, got {', '.join(formats.values())}; narrow"
            " the file pattern, or convert some."
        )
    ((name, gz),) = formats
    return Format(name, bool(gz))


# ---- blocks of a file ----------------------------------------------------------------------------


def scan(file: str, format_: Format) -> Iterator[tuple[int, list[bytes]]]:
    """The end of each block, and its records.

    Raises:
      UserError: the file is damaged.
    """
    if not tf.io.gfile.stat(file).length:
        return
    try:
        yield from _SCANNERS[format_.name](file, format_)
    # Python raises the next three of compressed files, ArrayRecord the last two.
    except (tf.errors.OpError, OSError, EOFError, zlib.error, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} is no {format_.name} file, or damaged: {reason}") from error


def _scan_lines(file: str, format_: Format) -> Iterator[tuple[int, list[bytes]]]:
    with _open(file, format_) as stream:
        for end, lines in _in_blocks(_lines(stream), lambda line: len(line) + 1):
            yield end, list(map(_without_return, lines))


def _scan_tfrecord(file: str, format_: Format) -> Iterator[tuple[int, list[bytes]]]:
    # TensorFlow verifies the checksums.
    dataset = tf.data.TFRecordDataset(file, "GZIP" if format_.gz else "").batch(BLOCK_RECORDS)
    records = (record for batch in dataset.as_numpy_iterator() for record in batch.tolist())
    return _in_blocks(records, lambda record: len(record) + _FRAME)


def _scan_array_record(file: str, format_: Format) -> Iterator[tuple[int, list[bytes]]]:
    reader = ArrayRecordReader(file)
    number = reader.num_records()
    if not number:  # Other files read as an empty ArrayRecord.
        raise ValueError("it has no records")
    for start in range(0, number, BLOCK_RECORDS):
        end = min(start + BLOCK_RECORDS, number)
        yield end, reader.read(start, end)


_SCANNERS = {
    "jsonl": _scan_lines,
    "txt": _scan_lines,
    "tfrecord": _scan_tfrecord,
    "array_record": _scan_array_record,
}


def _open(file: str, format_: Format) -> Any:
    stream: Any = tf.io.gfile.GFile(file, "rb")
    return gzip.GzipFile(fileobj=stream) if format_.gz else stream


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _in_blocks(
    records: Iterable[bytes], size: Callable[[bytes], int]
) -> Iterator[tuple[int, list[bytes]]]:
    """Groups records; `size` is the number of bytes that one takes in the file."""
    block: list[bytes] = []
    start = end = 0
    for record in records:
        block.append(record)
        end += size(record)
        if len(block) == BLOCK_RECORDS or end - start >= _BLOCK_BYTES:
            yield end, block
            block, start = [], end
    if block:
        yield end, block


def read(block: Block, format_: Format, part: Callable[[str, int, int], bytes]) -> list[bytes]:
    """The records of a block.

    Args:
      block, format_: where and how they are written.
      part: reads bytes of a file, from a start to an end.

    Raises:
      UserError: the file is no longer what it was.
    """
    try:
        if format_.name == "array_record":
            records = ArrayRecordReader(block.file).read(block.start, block.end)
        else:
            data = part(block.file, block.start, block.end)
            records = _cut_lines(data) if format_.is_lines else _cut_tfrecord(data)
    except (RuntimeError, ValueError, struct.error) as error:
        raise UserError(f"{block.file} can't be read: {error}; was it replaced?") from error
    if len(records) != block.num_records:
        raise UserError(f"{block.file} was changed while it was being read; start again.")
    return records


def _cut_lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return list(map(_without_return, lines))


def _without_return(line: bytes) -> bytes:
    return line.removesuffix(b"\r")


# Length and its checksum before a TFRecord, checksum of the record after it.
_FRAME = 8 + 4 + 4


def _cut_tfrecord(data: bytes) -> list[bytes]:
    records = []
    start = 0
    while start < len(data):
        (size,) = struct.unpack_from("<Q", data, start)
        records.append(data[start + 12 : start + 12 + size])
        start += size + _FRAME
    return records


# ---- shuffled ------------------------------------------------------------------------------------


class _Order(NamedTuple):
    epoch: int
    blocks: np.ndarray  # number of each block
    ends: np.ndarray  # position at which each window ends


class Windows:
    """The records of blocks, shuffled anew in each epoch.

    The blocks are shuffled, then the records of each window of 80 blocks, as MosaicML's Streaming
    does (https://docs.mosaicml.com/projects/streaming, `py1br`). Two windows are in memory: the
    current one, and the next, which is read in the background.

    Args:
      blocks: blocks of files of one format.
      format_: format of the files. Compressed ones can't be read from the middle: they are unpacked
        into temporary files.
    """

    def __init__(self, blocks: Sequence[Block], format_: Format):
        self._blocks, self._format = blocks, format_
        self._counts = np.array([block.num_records for block in blocks], np.int64)
        self._order = self._make_order(IN_ORDER)
        self._reading: dict[tuple[int, int], list[concurrent.futures.Future]] = {}
        self._current: tuple[tuple[int, int], list[bytes]] | None = None
        self._unpacked: dict[str, IO[bytes]] = {}
        self._unpacking = {block.file: threading.Lock() for block in blocks}
        self._lock = threading.Lock()

    @property
    def num_records(self) -> int:
        return int(self._counts.sum())

    def read(self, epoch: int, start: int, stop: int) -> list[bytes]:
        """Records `start` to `stop - 1` of an epoch, or fewer at its end."""
        records: list[bytes] = []
        with self._lock:
            if epoch != self._order.epoch:
                self._order = self._make_order(epoch)
            ends = self._order.ends
            while start < min(stop, self.num_records):
                number = int(np.searchsorted(ends, start, side="right"))
                first = ends[number - 1] if number else 0
                part = self._window(number)[start - first : stop - first]
                records += part
                start += len(part)
        return records

    def _make_order(self, epoch: int) -> _Order:
        blocks = np.arange(len(self._blocks))
        if epoch != IN_ORDER:
            blocks = np.random.default_rng(epoch).permutation(blocks)
        ends = np.cumsum(self._counts[blocks])
        return _Order(
            epoch, blocks, np.append(ends[_WINDOW_BLOCKS - 1 :: _WINDOW_BLOCKS], ends[-1:])
        )

    def _window(self, number: int) -> list[bytes]:
        """The records of a window, in the order of the epoch."""
        epoch = self._order.epoch
        if self._current is None or self._current[0] != (epoch, number):
            wanted = [(epoch, number), (epoch, number + 1)]
            self._reading = {key: self._reading.get(key) or self._start(*key) for key in wanted}
            records = [record for part in self._reading.pop(wanted[0]) for record in part.result()]
            if epoch != IN_ORDER:
                order = np.random.default_rng([epoch, number]).permutation(len(records))
                records = [records[i] for i in order]
            self._current = wanted[0], records
        return self._current[1]

    def _start(self, epoch: int, number: int) -> list[concurrent.futures.Future]:
        """Starts to read the blocks of a window."""
        blocks = self._order.blocks[number * _WINDOW_BLOCKS : (number + 1) * _WINDOW_BLOCKS]
        part = self._unpacked_part if self._format.gz else read_part
        return [_pool().submit(read, self._blocks[i], self._format, part) for i in blocks]

    def _unpacked_part(self, file: str, start: int, end: int) -> bytes:
        with self._unpacking[file]:
            if file not in self._unpacked:
                # It has no name, so that nothing is left of it if the process is killed.
                unpacked = tempfile.TemporaryFile()  # noqa: SIM115
                with _open(file, self._format) as stream:
                    shutil.copyfileobj(stream, unpacked, _CHUNK)
                unpacked.flush()
                self._unpacked[file] = unpacked
        return os.pread(self._unpacked[file].fileno(), end - start, start)


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(8, "blocks")
