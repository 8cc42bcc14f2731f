"""Packing keeps every frame and adds little padding."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from speechgpt_jax.speech.encoder.batching import bucket, cut, first_fit, pack, split_in_parts

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=50)


@hypothesis.given(SIZES)
def test_first_fit_takes_all_and_leaves_no_two_rows_that_fit_in_one(sizes):
    rows = first_fit(sizes, 40)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
    filled = sorted(sum(sizes[i] for i in row) for row in rows)
    assert filled[-1] <= 40 and (len(rows) == 1 or filled[0] + filled[1] > 40)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(SIZES, st.sampled_from([1, 8]))
def test_packed_segments_are_split_again(sizes, rows):
    segments = [np.full((200 * size, 2), i, np.float32) for i, size in enumerate(sizes)]
    batches = pack([len(x) for x in segments], rows)
    assert len({batch.shape for batch in batches}) == 1
    found = {}
    for batch in batches:
        x, numbers = batch.fill(segments)
        assert x.shape == (*batch.shape, 2) and batch.shape[0] <= rows
        np.testing.assert_array_equal(x[..., 0][numbers > 0], numbers[numbers > 0] - 1)
        found |= dict(batch.split(x))
    assert sorted(found) == list(range(len(sizes)))
    for i, x in found.items():
        np.testing.assert_array_equal(x, segments[i])


def test_nothing_makes_no_batch():
    assert pack([], 8) == []


@pytest.mark.parametrize(("n", "size"), [(0.1, 2), (2, 2), (5.01, 10), (40, 40), (41, 48)])
def test_buckets(n, size):
    assert bucket(n) == size


def test_a_cut_beyond_the_ends_holds_zeros():
    x = np.arange(1, 6)
    assert cut(x, -2, 4).tolist() == [0, 0, 1, 2]
    assert cut(x, 3, 4).tolist() == [4, 5, 0, 0]
    assert cut(x, -4, 3).tolist() == [0, 0, 0]
    assert cut(x, 7, 2).tolist() == [0, 0]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parts_are_equal_and_as_many_for_each_worker(workers):
    x = np.random.default_rng(0).standard_normal((2345, 3))
    parts = split_in_parts(x, workers)
    assert len(parts) % workers == 0 and {part.shape[0] for part in parts} == {1}
    (size,) = {part.shape[1] for part in parts}
    assert size % 50 == 0 and size <= 500
    joined = np.concatenate(parts, axis=1)[0]
    np.testing.assert_array_equal(joined[: len(x)], x)
    assert not joined[len(x) :].any()
