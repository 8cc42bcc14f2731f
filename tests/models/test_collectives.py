"""Matrix products and constraints without a mesh; tests/test_sharding.py tests them with one."""

import functools

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


@pytest.mark.parametrize("argument", [0, 1])
def test_products_of_bfloat16_are_summed_in_float32(argument):
    x, kernel = (
        jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
        for seed, shape in enumerate([(2, 300, 64), (64, 96)])
    )

    def loss(product, x, kernel):
        return jnp.sum(product(x, kernel).astype(jnp.float32) ** 2)

    ours = functools.partial(loss, lambda x, w: matmul(x, w, ("embed", "mlp")))
    actual = jax.grad(ours, argument)(x, kernel)
    exact = [y.astype(jnp.float32) for y in (x, kernel)]
    expected = jax.grad(functools.partial(loss, jnp.matmul), argument)(*exact)
    assert actual.dtype == jnp.bfloat16
    error = jnp.max(jnp.abs(actual.astype(jnp.float32) - expected)) / jnp.max(jnp.abs(expected))
    assert error < 2**-8  # That of two roundings to 8 bits.


def test_constraints_need_no_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "length")) is x
