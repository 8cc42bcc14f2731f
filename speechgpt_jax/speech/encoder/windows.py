"""Long recordings cut into overlapping windows of frames, every frame kept once."""

import math
from typing import NamedTuple

import numpy as np

from speechgpt_jax.speech.recordings import FRAMES_PER_SECOND

# Longest window, in frames, if a feature depends on `reach` frames to either side: WINDOW, or
# WINDOW_REACHES times the reach if that is longer, because neighbouring windows overlap by twice
# the reach.
WINDOW, WINDOW_REACHES = 2000, 4
# Longest window, and context at either side, if a feature depends on the whole recording. fairseq
# cuts recordings at the same length; a longer context changes few units.
WIDE_WINDOW, WIDE_CONTEXT = 5000, 50


class Window(NamedTuple):
    """Frames `start` to `start + size` of a recording; `first` to `end` of the window are kept.

    The other frames are context of those that are kept.
    """

    start: int
    size: int
    first: int
    end: int

    def cut(self, x: np.ndarray) -> np.ndarray:
        """Frames of the recording [T, ...] -> frames of the window [size, ...]."""
        return x[self.start : self.start + self.size]

    def kept(self, x: np.ndarray) -> np.ndarray:
        """Frames of the window [size, ...] -> those kept [end - first, ...]."""
        return x[self.first : self.end]


def windows_of(total: int, reach: float) -> list[Window]:
    """Windows of `total` frames whose features depend on `reach` frames to either side."""
    if reach == math.inf:
        return overlapping(total, WIDE_WINDOW, WIDE_CONTEXT)
    return overlapping(total, max(WINDOW, WINDOW_REACHES * int(reach)), int(reach))


def overlapping(total: int, longest: int, context: int) -> list[Window]:
    """Windows of one size, at most `longest`, with `context` frames at either side not kept.

    overlapping(10, 6, 1) -> [(0, 6, 0, 5), (4, 6, 1, 6)]: the recording's two ends are kept. Sizes
    are whole seconds where they fit, so that few shapes are compiled.
    """
    count = math.ceil(max(total - 2 * context, 1) / (longest - 2 * context))
    size = math.ceil((total - 2 * context) / count) + 2 * context
    size = min(-(-size // FRAMES_PER_SECOND) * FRAMES_PER_SECOND, longest, total)
    starts = [min(i * (size - 2 * context), total - size) for i in range(count)]
    ends = [start + size - context for start in starts[:-1]] + [total]
    firsts = [0, *ends[:-1]]
    return [
        Window(start, size, first - start, end - start)
        for start, first, end in zip(starts, firsts, ends)
    ]
