"""What a HuBERT's Transformer is given: [B, S] samples at 16 kHz -> [B, T, D], 50 frames a second.

Either HuBERT's own convolutions over the samples or, as in MelHuBERT (Lin et al. 2022, arXiv
2211.09944), some over a log-mel spectrogram, which a small model then need not find by itself.

Shapes: B batch, S samples, T frames, T' frames of the first layer, C convolution channels, D hidden
size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.cpu.toom_cook import StridedToomCookConv
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.mel import frames_of, mel_filterbank, power

gelu = functools.partial(jax.nn.gelu, approximate=False)


def linear(c_in: int, c_out: int, axes: tuple, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose kernel names its two dimensions; its type is that of the products.

    Their sums are float32.
    """
    return nnx.Linear(
        c_in,
        c_out,
        kernel_metadata=named(axes),
        promote_dtype=_as_kernel,
        preferred_element_type=jnp.float32,
        rngs=rngs,
    )


def _as_kernel(arrays: tuple, dtype: None) -> tuple:
    x, kernel, bias = arrays
    return x.astype(kernel.dtype), kernel, bias


def named(axes: tuple) -> dict:
    """What a parameter needs to carry the names of its dimensions."""
    # Eager sharding would demand a mesh even for a chat on a laptop.
    return {"out_sharding": axes, "eager_sharding": False}


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """x [B, T, C_in], kernel [K, C_in, C_out] -> [B, T', C_out], without padding.

    The kernel's type is that of the products; their sums are float32.
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
    """A 1-D convolution without padding: [B, T, C_in] -> [B, T', C_out]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, bias: bool, rngs: nnx.Rngs):
        self.stride = stride
        init = nnx.initializers.he_normal(in_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (kernel, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = convolve(x, self.kernel[...], self.stride)
        return y if self.bias is None else y + self.bias[...]


class TapByTap(nnx.Module):
    """A `Conv` as a product for each tap: CPUs multiply bfloat16, but XLA convolves none there."""

    def __init__(self, conv: Conv):
        self.kernel, self.bias, self.stride = conv.kernel, conv.bias, conv.stride

    def __call__(self, x: jax.Array) -> jax.Array:
        x, taps = x.astype(self.kernel.dtype), len(self.kernel[...])
        steps = (x.shape[1] - taps) // self.stride + 1
        y = sum(
            jnp.matmul(
                x[:, tap :: self.stride][:, :steps],
                self.kernel[tap],
                preferred_element_type=jnp.float32,
            )
            for tap in range(taps)
        )
        return y if self.bias is None else y + self.bias[...]


def prepared(conv: Conv) -> nnx.Module:
    """The same, faster on a CPU, of a kernel that no longer changes."""
    if conv.kernel.dtype != jnp.float32:
        return TapByTap(conv)
    return StridedToomCookConv(conv) if (conv.kernel.shape[0], conv.stride) == (3, 2) else conv


class ChannelNorm(nnx.Module):
    """GroupNorm with one group a channel: each channel is normalised over its own clip's frames."""

    def __init__(self, channels: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """x [B, T, C], mean and variance [B, 1, C] -> [B, T, C]."""
        return (x - mean) * lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]


class WaveFrontEnd(nnx.Module):
    """HuBERT's seven convolutions, the first of them normalised over the clip, and a projection."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        widths, eps = (1, *config.conv_dim), config.layer_norm_eps
        self.conv_layers = nnx.List(
            Conv(*shape, bias=False, rngs=rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel, config.conv_stride)
        )
        self.group_norm = ChannelNorm(widths[1], eps)
        self.layer_norm = nnx.LayerNorm(widths[-1], epsilon=eps, rngs=rngs)
        self.projection = linear(widths[-1], config.hidden_size, (None, "embed"), rngs)

    def moments(self, wav: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `__call__` normalises by: of each channel of the first layer mean and variance.

        wav [B, S], of which the layer's first `frames` [B] count -> [B, 1, C], [B, 1, C]. They
        follow from those of the samples in its windows, which are far fewer numbers.
        """
        first = self.conv_layers[0]
        kernel = first.kernel[:, 0]
        windows = frames_of(wav, len(kernel), first.stride)  # [B, T', K]
        # Padding takes no part, so a clip is normalised alike alone and in a batch.
        weights = (jnp.arange(windows.shape[1]) < frames[:, None]) / jnp.maximum(frames, 1)[:, None]
        mean = jnp.einsum("BTK,BT->BK", windows, weights)
        windows = windows - mean[:, None]
        covariance = jnp.einsum("BTK,BTL->BKL", windows, windows * weights[..., None])
        variance = jnp.einsum("BKL,KC,LC->BC", covariance, kernel, kernel)
        return (mean @ kernel)[:, None], variance[:, None]

    @staticmethod
    def pool(moments: tuple[np.ndarray, np.ndarray], frames: np.ndarray):
        """Moments [P, 1, C] of a clip's pieces, of so many frames each -> [1, C] of the clip."""
        means, variances = np.array(moments, np.float64)
        mean = np.average(means, 0, frames)
        variance = np.average(variances + np.square(means - mean), 0, frames)
        return mean.astype(np.float32), variance.astype(np.float32)

    def __call__(self, wav: jax.Array, moments: tuple[jax.Array, jax.Array]) -> jax.Array:
        """wav [B, S] and the clip's moments -> [B, T, D]."""
        x = self.group_norm(self.conv_layers[0](wav[..., None]), *moments)
        x = gelu(x)
        for conv in self.conv_layers[1:]:
            x = gelu(conv(x))
        return self.projection(self.layer_norm(x))

    def prepare(self) -> None:
        """Makes what is multiplied less often, from kernels that will no longer change."""
        first, *others = self.conv_layers
        self.conv_layers = nnx.List([first, *map(prepared, others)])


class MelFrontEnd(nnx.Module):
    """Convolutions over Whisper's log-mel spectrogram, taken relative to the clip's loudest band.

    The functions are those of `WaveFrontEnd`; the moments are the one peak [B, 1, 1].
    """

    # Of the spectrogram, in powers of ten: how far below the peak it ends, and the peak's value.
    DEPTH, PEAK = 8.0, 1.5

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        widths = config.conv_dim
        if widths[-1] != config.hidden_size:
            raise UserError(
                f"conv_dim {widths} must end in hidden_size {config.hidden_size}: this front end"
                " has no projection."
            )
        self.num_mels = widths[0]
        self.window, self.hop = config.conv_kernel[0], config.conv_stride[0]
        self.conv_layers = nnx.List(
            Conv(*shape, bias=True, rngs=rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel[1:], config.conv_stride[1:])
        )

    def _log_mel(self, wav: jax.Array) -> jax.Array:  # BS -> BT'C
        filters = mel_filterbank(SAMPLE_RATE, self.window, self.num_mels, 0.0, SAMPLE_RATE / 2)
        mel = power(frames_of(wav, self.window, self.hop)) @ filters
        return jnp.log10(jnp.maximum(mel, 1e-10))

    def moments(self, wav: jax.Array, frames: jax.Array) -> jax.Array:
        x = self._log_mel(wav)
        heard = (jnp.arange(x.shape[1]) < frames[:, None])[..., None]
        return jnp.where(heard, x, -10.0).max((1, 2), keepdims=True)

    @staticmethod
    def pool(moments: np.ndarray, frames: np.ndarray) -> np.ndarray:
        del frames
        return moments.max(0)

    def __call__(self, wav: jax.Array, moments: jax.Array) -> jax.Array:
        x = (jnp.maximum(self._log_mel(wav) - moments, -self.DEPTH) + 4.0 + self.PEAK) / 4.0
        for conv in self.conv_layers:
            x = gelu(conv(x))
        return x

    def prepare(self) -> None:
        """Nothing is long enough to gain by it."""


FRONT_ENDS = {"wave": WaveFrontEnd, "mel": MelFrontEnd}
