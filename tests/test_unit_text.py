"""Units and their text."""

import numpy as np
import pytest

from speechgpt_jax.unit_text import reduce_units, text_to_units, units_to_text


def test_text_of_units():
    assert units_to_text([5, 9]) == "<sosp><5><9><eosp>"
    assert units_to_text(np.array([661])) == "<sosp><661><eosp>"


@pytest.mark.parametrize("units", [[], [0], [5, 9, 999]])
def test_text_to_units_inverts_units_to_text(units):
    assert text_to_units(units_to_text(units)) == units


def test_spaces_of_decoded_text_are_allowed():
    assert text_to_units(" <sosp> <5>  <9> <eosp>\n") == [5, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be"),
        ("<5><9>", "must be"),
        ("<sosp><5>", "must be"),
        ("<sosp><5>hello<eosp>", "got 'hello'"),
        ("<sosp><-1><eosp>", "got '<-1>'"),
        ("<sosp><5><eosp><sosp><6><eosp>", "got '<eosp><sosp>"),
    ],
)
def test_broken_unit_text_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        text_to_units(text)


def test_repeats_become_durations():
    units, durations = reduce_units([5, 5, 9, 5])
    np.testing.assert_array_equal(units, [5, 9, 5])
    np.testing.assert_array_equal(durations, [2, 1, 1])
    np.testing.assert_array_equal(np.repeat(units, durations), [5, 5, 9, 5])


def test_no_units_reduce_to_none():
    units, durations = reduce_units([])
    assert len(units) == len(durations) == 0
