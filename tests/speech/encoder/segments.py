"""Random queries, keys and values of rows that hold several recordings."""

import numpy as np


def rows_of_segments(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """q, k, v [3, 2, T, 4, 8], and segments [2, T] of several recordings, one row padded."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, 2, steps, 4, 8)).astype(np.float32)
    at = np.arange(steps) / steps
    segments = np.stack([1 + (at > 0.5), np.array([7, 3, 3, 0])[(at * 4).astype(int)]])
    return arrays, segments.astype(np.int32)
