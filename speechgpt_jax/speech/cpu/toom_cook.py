"""Convolutions over time with half the multiplications and some more additions: for CPUs.

A sequence, split into four interleaved phases, is a polynomial of degree 3 in the delay of a step;
so is a kernel of four taps or more. Their product, of degree 6, follows from its values at seven
points, each of them a convolution of a quarter of the steps with a quarter of the taps: 7 products
instead of 16 (Toom and Cook; Winograd 1980; for networks Lavin & Gray 2016, arXiv 1509.09308). For
two taps it is 5 instead of 8.

Shapes: B batch, T steps, C channels, K taps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PHASES = 4
POINTS = (0, 1, -1, 2, -2, 0.5)  # And infinity.


@functools.cache
def _powers(points: int, degree: int) -> np.ndarray:
    """[points, degree + 1]: what each coefficient adds to the value at each point."""
    finite = np.array(POINTS[: points - 1])[:, None] ** np.arange(degree + 1)
    return np.vstack([finite, np.eye(degree + 1)[-1]])


class ToomCookConv(nnx.Module):
    """A `hifigan.Conv` of rate 1, x [B, T, C] -> [B, T, C'], whose kernel no longer changes."""

    def __init__(self, conv):
        self.kernel, self.bias, self.dilation = conv.kernel, conv.bias, conv.dilation
        self.values = nnx.List(nnx.Variable(value) for value in evaluated(conv.kernel[...]))

    def __call__(self, x):
        values = [value[...] for value in self.values]
        return convolve(x, values, self.kernel.shape[0], self.dilation) + self.bias[...]


class StridedToomCookConv(nnx.Module):
    """A `hubert_front_ends.Conv` of three taps and stride 2 whose kernel no longer changes.

    Even steps meet the first and the last tap, odd ones the middle one.
    """

    def __init__(self, conv):
        self.kernel, self.bias = conv.kernel, conv.bias
        self.values = nnx.List(nnx.Variable(value) for value in evaluated(conv.kernel[::2]))

    def __call__(self, x):
        steps = (x.shape[1] - 3) // 2 + 1
        y = convolve(x[:, ::2], [value[...] for value in self.values], 2, 1)[:, :steps]
        y = y + x[:, 1::2][:, :steps] @ self.kernel[1]
        return y if self.bias is None else y + self.bias[...]


def evaluated(kernel: jax.Array) -> list[jax.Array]:
    """A kernel [K, C, C'] at each of the points: as many of [K / 4, C, C'], K rounded up."""
    size = kernel.shape[0]
    taps, coefficients = -(-size // PHASES), min(size, PHASES)
    # Polynomials multiply as convolutions do, and lax's is a correlation: backwards, and back.
    delays = np.zeros((taps * coefficients, *kernel.shape[1:]))
    delays[:size] = kernel[::-1]
    powers = _powers(PHASES + coefficients - 1, coefficients - 1)
    values = np.tensordot(powers, delays.reshape(taps, coefficients, *kernel.shape[1:]), (1, 1))
    return [jnp.asarray(value[::-1], jnp.float32) for value in values]


def convolve(x: jax.Array, kernel: list[jax.Array], kernel_size: int, dilation: int) -> jax.Array:
    """x [B, T, C] with an `evaluated` kernel of K -> [B, T, C'].

    x is padded at both ends alike, or after its end by one step more.
    """
    batch, steps, _ = x.shape
    after = kernel_size // 2 * dilation
    blocks = -(-(steps + after) // (PHASES * dilation))
    # With dilation, every dilation-th step makes a sequence of its own.
    x = jnp.pad(x, ((0, 0), (0, blocks * PHASES * dilation - steps), (0, 0)))
    x = x.reshape(batch, blocks, PHASES, dilation, -1)
    phases = [x[:, :, i].reshape(batch, blocks * dilation, -1) for i in range(PHASES)]
    values = [
        jax.lax.conv_general_dilated(
            _combined(weights, phases),
            value,
            window_strides=(1,),
            padding=[((value.shape[0] - 1) * dilation, 0)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        for weights, value in zip(_powers(len(kernel), PHASES - 1), kernel)
    ]
    interpolate = np.linalg.inv(_powers(len(kernel), len(kernel) - 1)).round(12)
    product = [_combined(weights, values) for weights in interpolate]
    # The fourth power of a step's delay is the delay of a block.
    late = [jnp.pad(y, ((0, 0), (dilation, 0), (0, 0)))[:, :-dilation] for y in product[PHASES:]]
    phases = [y + z for y, z in zip(product, late)] + product[len(late) : PHASES]
    y = jnp.stack([y.reshape(batch, blocks, dilation, -1) for y in phases], axis=2)
    return y.reshape(batch, blocks * PHASES * dilation, -1)[:, after : after + steps]


def _combined(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    return sum(float(weight) * array for weight, array in zip(weights, arrays) if weight)
