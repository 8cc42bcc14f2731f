"""Front ends of a HuBERT: samples at 16 kHz -> 50 frames per second for the Transformer.

Either HuBERT's own convolutions over the samples or, as in MelHuBERT (Lin et al. 2022, arXiv
2211.09944), convolutions over a log-mel spectrogram, which a small model need not learn by itself.

Both normalise by statistics of the whole recording. These can be computed from pieces of it, with
`statistics` and `pool_statistics`.

Shapes: B batch, S samples, T frames, T' frames of the first layer, C channels of the convolutions,
D hidden size, P pieces of one recording.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.mel import frames_of, log10_mel

gelu = functools.partial(jax.nn.gelu, approximate=False)

# Mean and variance of a `WaveFrontEnd`, peak of a `MelFrontEnd`.
Statistics = tuple[jax.Array, jax.Array] | jax.Array


def linear(c_in: int, c_out: int, axes: tuple[str | None, ...], rngs: nnx.Rngs) -> nnx.Linear:
    """Linear layer whose kernel carries the logical axis names `axes`.

    Factors have the kernel's type, sums are float32.
    """
    return nnx.Linear(
        c_in,
        c_out,
        kernel_metadata=axis_names(axes),
        promote_dtype=_cast_input_to_kernel,
        preferred_element_type=jnp.float32,
        rngs=rngs,
    )


def _cast_input_to_kernel(arrays: tuple, dtype: None) -> tuple:
    x, kernel, bias = arrays
    return x.astype(kernel.dtype), kernel, bias


def axis_names(axes: tuple[str | None, ...]) -> dict[str, Any]:
    """Metadata of a parameter that carries logical axis names."""
    # Eager sharding would demand a mesh even for a chat on a laptop.
    return {"out_sharding": axes, "eager_sharding": False}


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution without padding: x [B, T, C_in], kernel [K, C_in, C_out] -> [B, T', C_out].

    Factors have the kernel's type, sums are float32.
    """
    return lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        (stride,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        preferred_element_type=jnp.float32,
    )


class Conv(nnx.Module):
    """1-D convolution without padding: [B, T, C_in] -> [B, T', C_out]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, bias: bool, rngs: nnx.Rngs):
        self.stride = stride
        init = nnx.initializers.he_normal(in_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (kernel, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = convolve(x, self.kernel[...], self.stride)
        return y if self.bias is None else y + self.bias[...]


class ChannelNorm(nnx.Module):
    """GroupNorm with one group per channel, by given mean and variance."""

    def __init__(self, channels: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """x [B, T, C], mean and variance [B, 1, C] -> [B, T, C]."""
        return (x - mean) * lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]


class WaveFrontEnd(nnx.Module):
    """HuBERT's seven convolutions over samples and a projection.

    The first layer's output is normalised per channel over the whole recording.
    """

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        widths, eps = (1, *config.conv_dim), config.layer_norm_eps
        self.conv_layers = nnx.List(
            Conv(*shape, bias=False, rngs=rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel, config.conv_stride)
        )
        self.group_norm = ChannelNorm(widths[1], eps)
        self.layer_norm = nnx.LayerNorm(widths[-1], epsilon=eps, rngs=rngs)
        self.projection = linear(widths[-1], config.hidden_size, (None, "embed"), rngs)

    def statistics(self, wav: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance [B, 1, C] of each channel of the first layer's output.

        They are computed from the covariance of the samples within the layer's windows, which is
        far less work than computing that output.

        Args:
          wav: [B, S].
          frames: [B], number of the layer's frames before the padding.
        """
        first = self.conv_layers[0]
        kernel = first.kernel[:, 0]
        windows = frames_of(wav, len(kernel), first.stride)  # [B, T', K]
        weights = (jnp.arange(windows.shape[1]) < frames[:, None]) / jnp.maximum(frames, 1)[:, None]
        mean = jnp.einsum("BTK,BT->BK", windows, weights)
        windows = windows - mean[:, None]
        covariance = jnp.einsum("BTK,BTL->BKL", windows, windows * weights[..., None])
        variance = jnp.einsum("BKL,KC,LC->BC", covariance, kernel, kernel)
        return (mean @ kernel)[:, None], variance[:, None]

    @staticmethod
    def pool_statistics(
        statistics: tuple[np.ndarray, np.ndarray], frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Statistics [P, 1, C] of pieces of `frames` [P] each -> [1, C] of the whole recording."""
        means, variances = np.array(statistics, np.float64)
        mean = np.average(means, 0, frames)
        variance = np.average(variances + np.square(means - mean), 0, frames)
        return mean.astype(np.float32), variance.astype(np.float32)

    def __call__(self, wav: jax.Array, statistics: tuple[jax.Array, jax.Array]) -> jax.Array:
        """wav [B, S], statistics of the whole recording -> [B, T, D]."""
        x = self.group_norm(self.conv_layers[0](wav[..., None]), *statistics)
        x = gelu(x)
        for conv in self.conv_layers[1:]:
            x = gelu(conv(x))
        return self.projection(self.layer_norm(x))


class MelFrontEnd(nnx.Module):
    """Convolutions over Whisper's log-mel spectrogram, relative to the recording's loudest band.

    Its statistics are the peak [B, 1, 1] of the log-mel spectrogram.
    """

    # In powers of ten: range of the spectrogram below the peak, and the value given to the peak.
    DEPTH, PEAK = 8.0, 1.5

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        widths = config.conv_dim
        self.num_mels = widths[0]
        self.window, self.hop = config.conv_kernel[0], config.conv_stride[0]
        self.conv_layers = nnx.List(
            Conv(*shape, bias=True, rngs=rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel[1:], config.conv_stride[1:])
        )

    def statistics(self, wav: jax.Array, frames: jax.Array) -> jax.Array:
        """Peak [B, 1, 1] of the first `frames` [B] of the log-mel spectrogram of wav [B, S]."""
        x = self._log_mel(wav)
        is_real = (jnp.arange(x.shape[1]) < frames[:, None])[..., None]
        return jnp.where(is_real, x, -10.0).max((1, 2), keepdims=True)

    @staticmethod
    def pool_statistics(statistics: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Peaks [P, 1, 1] of pieces -> [1, 1] of the whole recording."""
        del frames
        return statistics.max(0)

    def __call__(self, wav: jax.Array, statistics: jax.Array) -> jax.Array:
        """wav [B, S], peak of the whole recording [B, 1, 1] -> [B, T, D]."""
        x = (jnp.maximum(self._log_mel(wav) - statistics, -self.DEPTH) + 4.0 + self.PEAK) / 4.0
        for conv in self.conv_layers:
            x = gelu(conv(x))
        return x

    def _log_mel(self, wav: jax.Array) -> jax.Array:  # BS -> BT'C
        return log10_mel(frames_of(wav, self.window, self.hop), SAMPLE_RATE, self.num_mels)


FrontEnd = WaveFrontEnd | MelFrontEnd
FRONT_ENDS: dict[str, type[FrontEnd]] = {"wave": WaveFrontEnd, "mel": MelFrontEnd}
