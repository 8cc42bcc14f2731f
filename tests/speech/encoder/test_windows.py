"""Windows keep every frame once and give each its context."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest

from speechgpt_jax.speech.encoder.windows import (
    WIDE_CONTEXT,
    WIDE_WINDOW,
    WINDOW,
    overlapping,
    windows_of,
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(WINDOW + 1, 50_000), st.sampled_from([0, WIDE_CONTEXT]))
def test_windows_keep_every_frame_once_and_give_it_context(total, context):
    kept = []
    for window in overlapping(total, WINDOW, context):
        start, size, first, end = window
        assert start >= 0 and start + size <= total and size <= WINDOW and size % 50 == 0
        assert first >= context or start == 0
        assert size - end >= context or start + size == total
        kept += window.kept(window.cut(range(total)))
    assert kept == list(range(total))


@pytest.mark.parametrize(
    ("reach", "longest"), [(0, WINDOW), (500, WINDOW), (900, 3600), (math.inf, WIDE_WINDOW)]
)
def test_windows_are_several_times_the_reach(reach, longest):
    sizes = {window.size for window in windows_of(30_000, reach)}
    assert longest - 1000 < max(sizes) <= longest
