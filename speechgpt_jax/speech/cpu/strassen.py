"""Products of matrices with seven multiplications of quarters instead of eight: for CPUs.

Strassen 1969, in Winograd's form, which adds 15 quarters. One level of it: a second one, or smaller
matrices, would lose in additions what they gain.

A matrix is the list of its quarters here: upper left, upper right, lower left, lower right. To join
what one product gives and cut it again for the next one would take as long as is saved.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Quarters = list[jax.Array]


class StrassenMlp(nnx.Module):
    """Two linear layers with an activation between, [B, T, D] -> [B, T, D], that no longer change.

    All widths must be even.
    """

    def __init__(self, first: nnx.Linear, last: nnx.Linear, activation: Callable):
        self.activation = activation
        self.first, self.last = (
            nnx.List(map(nnx.Variable, evaluated(layer.kernel[...]))) for layer in (first, last)
        )
        self.first_bias, self.last_bias = first.bias, last.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        inner = product(cut(jnp.pad(rows, ((0, len(rows) % 2), (0, 0)))), self.first)
        bias = jnp.split(self.first_bias[...], 2)
        inner = [self.activation(y + bias[i % 2]) for i, y in enumerate(inner)]
        y = join(product(inner, self.last))[: len(rows)]
        return y.reshape(x.shape) + self.last_bias[...]


def cut(x: jax.Array) -> Quarters:
    return [quarter for half in jnp.split(x, 2) for quarter in jnp.split(half, 2, axis=1)]


def join(quarters: Quarters) -> jax.Array:
    return jnp.block([quarters[:2], quarters[2:]])


def evaluated(b: jax.Array) -> list[jax.Array]:
    """What `product` multiplies by, of a matrix [K, N]: seven of [K / 2, N / 2]."""
    b11, b12, b21, b22 = cut(b)
    t1 = b12 - b11
    t2 = b22 - t1
    return [b11, b21, b22, t2 - b21, t1, t2, b22 - b12]


def product(a: Quarters, b: list[jax.Array]) -> Quarters:
    """A matrix [M, K] with an `evaluated` one [K, N] -> [M, N]."""
    a11, a12, a21, a22 = a
    s1 = a21 + a22
    s2 = s1 - a11
    left = a11, a12, a12 - s2, a22, s1, s2, a11 - a21
    p1, p2, p3, p4, p5, p6, p7 = (x @ y[...] for x, y in zip(left, b))
    u2 = p1 + p6
    u3 = u2 + p7
    return [p1 + p2, u2 + p5 + p3, u3 - p4, u3 + p5]
