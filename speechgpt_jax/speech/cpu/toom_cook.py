"""Convolutions over time with about half the multiplications, for inference on CPUs.

The algorithm is Toom and Cook's (Winograd 1980; for networks Lavin & Gray 2016, arXiv 1509.09308).
A sequence split into four interleaved phases is a polynomial of degree 3 in the delay of one step,
and so is a kernel of four taps or more. Their product has degree 6, so its values at seven points
determine it. Each value is a convolution of a quarter of the steps with a quarter of the taps:
7 products instead of 16. Two taps need 5 instead of 8.

Shapes: B batch, T steps, C channels, K taps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PHASES = 4
FINITE_POINTS = (0, 1, -1, 2, -2, 0.5)  # The last point is infinity.


@functools.cache
def _powers(points: int, degree: int) -> np.ndarray:
    """Matrix [points, degree + 1]: coefficients of a polynomial -> its values at the points."""
    finite = np.array(FINITE_POINTS[: points - 1])[:, None] ** np.arange(degree + 1)
    return np.vstack([finite, np.eye(degree + 1)[-1]])


class ToomCookConv(nnx.Module):
    """A `hifigan.Conv` of rate 1: x [B, T, C] -> [B, T, C']."""

    def __init__(self, conv: nnx.Module):
        self.kernel, self.bias, self.dilation = conv.kernel, conv.bias, conv.dilation
        self.values = nnx.List(nnx.Variable(value) for value in kernel_values(conv.kernel[...]))

    def __call__(self, x: jax.Array) -> jax.Array:
        values = [value[...] for value in self.values]
        return convolve(x, values, self.kernel.shape[0], self.dilation) + self.bias[...]


class StridedToomCookConv(nnx.Module):
    """A `front_ends.Conv` of three taps and stride 2: x [B, T, C] -> [B, T', C'].

    Even steps meet the first and the last tap, a convolution of two taps; odd steps the middle tap.
    """

    def __init__(self, conv: nnx.Module):
        self.kernel, self.bias = conv.kernel, conv.bias
        self.values = nnx.List(nnx.Variable(value) for value in kernel_values(conv.kernel[::2]))

    def __call__(self, x: jax.Array) -> jax.Array:
        steps = (x.shape[1] - 3) // 2 + 1
        y = convolve(x[:, ::2], [value[...] for value in self.values], 2, 1)[:, :steps]
        y = y + x[:, 1::2][:, :steps] @ self.kernel[1]
        return y if self.bias is None else y + self.bias[...]


def kernel_values(kernel: jax.Array) -> list[jax.Array]:
    """A kernel [K, C, C'] -> its value at each point, [ceil(K / 4), C, C']."""
    size = kernel.shape[0]
    taps, coefficients = -(-size // PHASES), min(size, PHASES)
    # Polynomials multiply like convolutions, but lax computes correlations: hence the reversals.
    delays = np.zeros((taps * coefficients, *kernel.shape[1:]))
    delays[:size] = kernel[::-1]
    powers = _powers(PHASES + coefficients - 1, coefficients - 1)
    values = np.tensordot(powers, delays.reshape(taps, coefficients, *kernel.shape[1:]), (1, 1))
    return [jnp.asarray(value[::-1], jnp.float32) for value in values]


def convolve(x: jax.Array, values: list[jax.Array], kernel_size: int, dilation: int) -> jax.Array:
    """Convolution of x [B, T, C] with a kernel given by its `kernel_values` -> [B, T, C'].

    x is padded equally at both ends; for an even `kernel_size` by one step more at the end.
    """
    batch, steps, _ = x.shape
    after = kernel_size // 2 * dilation
    blocks = -(-(steps + after) // (PHASES * dilation))
    # With dilation d, the steps t, t + d, t + 2 d, ... are a sequence of their own.
    x = jnp.pad(x, ((0, 0), (0, blocks * PHASES * dilation - steps), (0, 0)))
    x = x.reshape(batch, blocks, PHASES, dilation, -1)
    phases = [x[:, :, i].reshape(batch, blocks * dilation, -1) for i in range(PHASES)]
    products = [
        jax.lax.conv_general_dilated(
            _combined(weights, phases),
            value,
            window_strides=(1,),
            padding=[((value.shape[0] - 1) * dilation, 0)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        for weights, value in zip(_powers(len(values), PHASES - 1), values)
    ]
    interpolate = np.linalg.inv(_powers(len(values), len(values) - 1)).round(12)
    product = [_combined(weights, products) for weights in interpolate]
    # Coefficients from degree 4 on are delayed by a whole block of four steps.
    late = [jnp.pad(y, ((0, 0), (dilation, 0), (0, 0)))[:, :-dilation] for y in product[PHASES:]]
    phases = [y + z for y, z in zip(product, late)] + product[len(late) : PHASES]
    y = jnp.stack([y.reshape(batch, blocks, dilation, -1) for y in phases], axis=2)
    return y.reshape(batch, blocks * PHASES * dilation, -1)[:, after : after + steps]


def _combined(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    """Weighted sum of the arrays."""
    return sum(float(weight) * array for weight, array in zip(weights, arrays) if weight)
