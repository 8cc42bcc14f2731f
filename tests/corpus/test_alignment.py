"""Frames of two recordings of the same words are found again by dynamic time warping."""

import numpy as np

from speechgpt_jax.corpus.alignment import least_cost_path, squared_distances, warp


def test_the_example_of_the_docstring():
    features, reference = np.array([[0.0], [0], [5], [9]]), np.array([[0.0], [5], [5], [5], [9]])
    assert warp(features, reference).tolist() == [0, 0, 2, 4]


def shortest(distances: np.ndarray) -> float:
    """Total distance of the shortest path, cell by cell."""
    total = np.full(distances.shape, np.inf)
    for i, j in np.ndindex(distances.shape):
        before = [total[k] for k in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if min(k) >= 0]
        total[i, j] = distances[i, j] + min(before, default=0)
    return total[-1, -1]


def test_the_path_is_the_shortest():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 4)), rng.standard_normal((41, 4))
    distances = squared_distances(a, b)
    np.testing.assert_allclose(distances, ((a[:, None] - b) ** 2).sum(-1), atol=1e-9)
    rows, columns = least_cost_path(distances)
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 29, 40)
    steps = np.stack([np.diff(rows), np.diff(columns)])
    assert steps.min() == 0 and steps.max() == 1 and (steps.sum(0) > 0).all()
    np.testing.assert_allclose(distances[rows, columns].sum(), shortest(distances))


def test_another_speed_is_undone():
    rng = np.random.default_rng(0)
    reference = np.repeat(rng.standard_normal((12, 5)), 4, axis=0)
    slower = np.repeat(reference, 2, axis=0) + 0.05 * rng.standard_normal((96, 5))
    np.testing.assert_array_equal(reference[warp(slower, reference)], np.repeat(reference, 2, 0))


def test_recordings_of_one_frame():
    assert warp(np.zeros((1, 2)), np.zeros((3, 2))).tolist() == [1]
    assert warp(np.zeros((3, 2)), np.zeros((1, 2))).tolist() == [0, 0, 0]
