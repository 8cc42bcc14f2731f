"""Batches of few shapes, each compiled once, for any number of recordings of any length.

The front end and the positions get pieces of one second, the Transformer gets rows of frames in
which recordings, or windows of them, stand one after the other.

Shapes: P pieces, B rows, T frames, D hidden size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from speechgpt_jax.speech.encoder.runner import Runner
from speechgpt_jax.speech.recordings import FRAMES_PER_SECOND

# Lengths of a row in seconds, and numbers of pieces, that are compiled.
BUCKETS = (2, 5, 10, 15, 20, 30, 40)
# Room in a row, unless a segment is longer.
ROW_SECONDS = BUCKETS[-1]
# Pieces in one program.
MAX_PIECES = 10
PIECE_FRAMES = FRAMES_PER_SECOND
# Longest part of a recording, in frames, that a core computes at a time.
PART_FRAMES = 500


def bucket(n: float) -> int:
    """Smallest bucket of at least `n`: one of `BUCKETS`, beyond them a multiple of 16."""
    return next((size for size in BUCKETS if size >= n), math.ceil(n / 16) * 16)


# ---- pieces --------------------------------------------------------------------------------------


def pieces_at_once(count: int, num_workers: int) -> int:
    """Number of pieces in each program for `count` pieces."""
    return min(bucket(count / num_workers), MAX_PIECES)


def map_pieces(
    runner: Runner,
    function: Callable,
    counts: Sequence[int],
    piece: Callable[[int, int], Any],
) -> list[Any]:
    """Results of `function` for the pieces of each recording; None where all counts are 0.

    Args:
      runner: runs `function`.
      function: (hubert, *arrays [P, ...]) -> arrays [P, ...], a row for each piece.
      counts: number of pieces of each recording.
      piece: (index of the recording, number of the piece) -> the piece's arrays [...].

    Returns:
      for each recording, arrays [count, ...].
    """
    places = [(i, number) for i, count in enumerate(counts) for number in range(count)]
    if not places:
        return [None] * len(counts)
    size = pieces_at_once(len(places), runner.parallelism.num_workers)
    chunks = [places[i : i + size] for i in range(0, len(places), size)]

    def stacked(chunk: list[tuple[int, int]]) -> tuple:
        pieces = [piece(*place) for place in chunk]
        pieces += pieces[:1] * (size - len(chunk))  # Every program has the same shape.
        return jax.tree.map(lambda *x: np.stack(x), *pieces)

    results = runner.map(function, stacked, chunks)
    results = jax.tree.map(lambda *x: np.concatenate(x), *results)
    ends = np.cumsum(counts)
    return [
        jax.tree.map(lambda x, begin=end - count, end=end: x[begin:end], results)
        for count, end in zip(counts, ends)
    ]


def map_frames(
    runner: Runner,
    function: Callable,
    lengths: Sequence[int],
    piece: Callable[[int, int], Any],
) -> list[np.ndarray]:
    """`map_pieces` of a function that returns frames [P, PIECE_FRAMES, D].

    Args:
      runner, function, piece: see `map_pieces`.
      lengths: number of frames of each recording.

    Returns:
      for each recording, frames [length, D].
    """
    counts = [-(-length // PIECE_FRAMES) for length in lengths]
    width = runner.hubert.config.hidden_size
    return [
        x.reshape(-1, width)[:length] if length else np.zeros((0, width), np.float32)
        for x, length in zip(map_pieces(runner, function, counts, piece), lengths)
    ]


def cut(x: np.ndarray, start: int, size: int) -> np.ndarray:
    """x[start : start + size], with zeros before the beginning and after the end of x."""
    part = x[max(start, 0) : max(start + size, 0)]
    before = min(max(-start, 0), size)
    return np.pad(part, [(before, size - before - len(part)), *[(0, 0)] * (x.ndim - 1)])


# ---- rows ----------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Segments in the rows of one batch.

    Attributes:
      shape: B, T.
      places: index, row and frames in that row of each segment.
    """

    shape: tuple[int, int]
    places: list[tuple[int, int, slice]]

    def fill(self, segments: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Segments [T', D] -> rows [B, T, D], number of each frame's segment [B, T]; 0: none."""
        x = np.zeros((*self.shape, segments[0].shape[1]), np.float32)
        numbers = np.zeros(self.shape, np.int32)
        for i, row, frames in self.places:
            x[row, frames] = segments[i]
            numbers[row, frames] = i + 1
        return x, numbers

    def split(self, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Rows [B, T, ...] -> index and frames [T', ...] of each segment."""
        return ((i, y[row, frames]) for i, row, frames in self.places)


def pack(sizes: Sequence[int], rows_per_batch: int) -> list[Batch]:
    """Batches of one shape for segments of `sizes` frames, with little padding."""
    rows = first_fit(sizes, max([*sizes, ROW_SECONDS * FRAMES_PER_SECOND]))
    longest = max((sum(sizes[i] for i in row) for row in rows), default=0)
    length = bucket(longest / FRAMES_PER_SECOND) * FRAMES_PER_SECOND
    count = min(rows_per_batch, len(rows))
    batches = []
    for begin in range(0, len(rows), max(count, 1)):
        places = []
        for row, members in enumerate(rows[begin : begin + count]):
            ends = np.cumsum([sizes[i] for i in members]).tolist()
            places += [(i, row, slice(end - sizes[i], end)) for i, end in zip(members, ends)]
        batches.append(Batch((count, length), places))
    return batches


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the sizes that share a row: largest first, each in the first row with room.

    first_fit([3, 9, 6, 1], 10) -> [[1, 3], [2, 0]]
    """
    rows, room = [], []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((row for row, left in enumerate(room) if left >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= sizes[i]
    return rows


# ---- parts of one long recording -----------------------------------------------------------------


def split_in_parts(x: np.ndarray, num_workers: int) -> list[np.ndarray]:
    """x [T, D] -> parts [1, size, D] of whole seconds, as many for each worker; zero-padded."""
    count = num_workers * math.ceil(len(x) / (num_workers * PART_FRAMES))
    size = -(-len(x) // (count * FRAMES_PER_SECOND)) * FRAMES_PER_SECOND
    return np.split(np.pad(x, ((0, count * size - len(x)), (0, 0)))[None], count, axis=1)
