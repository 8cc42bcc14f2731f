"""Percentiles of measured times."""

import pytest

from speechgpt_jax.errors import UserError
from tests.benchmarks.timing import percentile


def test_percentiles_lie_between_the_values():
    assert percentile([*range(1, 100)], 0.95) == 95
    assert percentile([1.0, 3.0], 0.5) == 2


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_replies_are_named(values):
    with pytest.raises(UserError, match="replies are too few for a percentile; give more --sec"):
        percentile(values, 0.95)
