"""Matrix products and constraints without a mesh; tests/test_sharding.py tests them with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.models.collectives import constrain, matmul


@pytest.mark.slow
def test_matmul_has_the_gradients_of_a_matrix_product():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 4)), jnp.eye(4, 5) + 0.1
    for argument in (0, 1):
        actual = jax.grad(lambda x, w: jnp.sum(matmul(x, w, ("embed", "mlp")) ** 2), argument)(
            x, kernel
        )
        expected = jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), argument)(x, kernel)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_constraints_need_no_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "length")) is x
