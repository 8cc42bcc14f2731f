"""Alignment in time of two recordings of the same words, by dynamic time warping of their features.

One speaker's features, laid over the time of another speaker's recording, are targets that do not
depend on who speaks: an encoder that learns them gives both the same units.
"""

import numpy as np

from speechgpt_jax.errors import UserError


def warp(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Index of the reference's frame that corresponds to each frame of a recording, int [T].

    The path of least total distance from the first frames of both to the last, where each step
    advances one of them or both by a frame (Sakoe and Chiba 1978). Of several reference frames on
    one frame of the recording, the middle one is taken.

    [[0], [0], [5], [9]], [[0], [5], [5], [5], [9]] -> [0, 0, 2, 4]

    Args:
      features: [T, D] of the recording.
      reference: [R, D].

    Raises:
      UserError: the recording or the reference has no frame.
    """
    if not len(features) or not len(reference):
        raise UserError(
            "a recording or its reference is shorter than a frame of 25 ms; leave both out."
        )
    distances = squared_distances(features, reference) ** 0.5
    frames, references = least_cost_path(distances)
    first = np.searchsorted(frames, np.arange(len(features)), "left")
    last = np.searchsorted(frames, np.arange(len(features)), "right") - 1
    return references[(first + last) // 2]


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [T, D], b [R, D] -> [T, R]."""
    products = a @ b.T
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * products, 0)


def least_cost_path(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each step of the path of least total distance through distances [T, R]."""
    rows, columns = distances.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    # Cells of one diagonal depend on earlier diagonals only.
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = distances[i, j] + before
    i, j = rows - 1, columns - 1
    steps = [(i, j)]
    while i or j:
        moves = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(moves, key=lambda move: total[move[0] + 1, move[1] + 1])
        steps.append((i, j))
    return tuple(np.array(steps[::-1]).T)
