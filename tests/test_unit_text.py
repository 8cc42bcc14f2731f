"""Units and their text."""

import numpy as np
import pytest

from speechgpt_jax.unit_text import reduce_units, units_in, units_to_text


def test_text_of_units():
    assert units_to_text([5, 9]) == "<sosp><5><9><eosp>"
    assert units_to_text(np.array([661])) == "<sosp><661><eosp>"


@pytest.mark.parametrize("units", [[], [0], [5, 9, 999]])
def test_units_in_a_text(units):
    assert units_in(units_to_text(units)) == units


def test_what_is_no_unit_is_skipped():
    assert units_in(" <sosp> <5> hello <9><-1><6.5><\u0663> <eosp>\n") == [5, 9]


def test_repeats_become_durations():
    units, durations = reduce_units([5, 5, 9, 5])
    np.testing.assert_array_equal(units, [5, 9, 5])
    np.testing.assert_array_equal(durations, [2, 1, 1])
    np.testing.assert_array_equal(np.repeat(units, durations), [5, 5, 9, 5])


def test_no_units_reduce_to_none():
    units, durations = reduce_units([])
    assert len(units) == len(durations) == 0
