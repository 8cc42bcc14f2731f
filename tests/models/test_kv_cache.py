"""Both ways of writing the cache and reading it give the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.models import kv_cache


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("length", [1, 3])
def test_next_tokens_are_written_at_each_rows_position(monkeypatch, platform, length):
    monkeypatch.setattr(kv_cache, "target_platform", lambda: platform)
    cached = np.arange(2 * 4 * 8 * 2, dtype=np.float32).reshape(2, 4, 8, 2)
    new = -np.arange(2 * length * 4 * 2, dtype=np.float32).reshape(2, length, 4, 2)
    got = jax.jit(kv_cache.write_cache)(cached, new, jnp.array([0, 5]))
    expected = cached.copy()
    for row, first in enumerate((0, 5)):
        expected[row, :, first : first + length] = new[row].swapaxes(0, 1)
    np.testing.assert_array_equal(got, expected)
