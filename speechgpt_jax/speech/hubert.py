"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): 16 kHz sound -> 50 feature vectors a second.

Its front end is HuBERT's own, convolutions over the samples, or, as in MelHuBERT (Lin et al. 2022,
arXiv 2211.09944), over a log-mel spectrogram, which a small model then need not find by itself.

Shapes: B batch, S samples, T frames, C convolution channels, D hidden size, N heads, H head size.
Layer names are those of `transformers.HubertModel`, so weights convert by a table. Large parameters
carry the logical axis names of `sharding`, so that pre-training shards as the language model does.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.mel import frames_of, mel_filterbank, power


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Sizes of a HuBERT; the defaults are the base model (95 M parameters).

    Attributes:
      front_end: "wave", or "mel": its first layer is then no convolution but a log-mel spectrogram
        of `conv_dim[0]` bands, windows of `conv_kernel[0]` samples and hops of `conv_stride[0]`.
      norm_first: LayerNorm stands before attention and MLP, as in the large HuBERT, and once at the
        end, instead of after each.
      position_kernel, position_groups: of the convolution that tells positions.
      position_period: if not 0, sinusoids do instead, Whisper's, each of a frequency such that all
        repeat after so many frames: a recording has no longest length.
      attention_frames: how far a frame attends to either side; None is all of the sound.
      feature_layer: 1-based layer whose output is the features.
    """

    front_end: str = "wave"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    layer_norm_eps: float = 1e-5
    norm_first: bool = False
    position_period: int = 0
    attention_frames: int | None = None
    feature_layer: int = 11

    def __post_init__(self):
        if self.front_end not in ("wave", "mel"):
            raise ValueError(f'front_end {self.front_end!r} must be "wave" or "mel".')

    @classmethod
    def base(cls) -> "HubertConfig":
        """The shape of mHuBERT: units come from layer 11 of 12."""
        return cls()

    @classmethod
    def tiny(cls) -> "HubertConfig":
        """4.7 M parameters: the shipped tokenizer of the demo world."""
        return cls(
            front_end="mel",
            conv_dim=(80, 384, 384),
            conv_kernel=(400, 3, 3),
            conv_stride=(160, 1, 2),
            hidden_size=384,
            num_layers=3,
            num_heads=6,
            intermediate_size=1024,
            norm_first=True,
            position_period=1500,
            attention_frames=32,
            feature_layer=3,
        )

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: 320, which is 20 ms at 16 kHz."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples one frame sees before the Transformer: 400 of the base model."""
        field, step = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    @property
    def padding(self) -> int:
        """Samples of silence before and after the sound.

        Frames of either front end so are as many, and their centres (320 t + 200) where they were.
        """
        return (self.receptive_field - self.conv_kernel[0]) // 2 * (self.front_end == "mel")

    @property
    def reach(self) -> float:
        """How many frames to either side a feature depends on in the Transformer."""
        if self.attention_frames is None:
            return math.inf
        positions = 0 if self.position_period else self.position_kernel // 2
        return positions + self.feature_layer * self.attention_frames

    def num_frames(self, samples):
        """16000 samples -> 49 frames; fewer than 400 samples -> 0. Works on ints and arrays."""
        samples = samples + 2 * self.padding
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)


def _linear(c_in: int, c_out: int, axes: tuple, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose kernel names its two dimensions."""
    return nnx.Linear(c_in, c_out, kernel_metadata=_named(axes), rngs=rngs)


def _named(axes: tuple) -> dict:
    # Eager sharding would demand a mesh even for a chat on a laptop.
    return {"out_sharding": axes, "eager_sharding": False}


class Conv(nnx.Module):
    """A 1-D convolution without padding: [B, T, C_in] -> [B, T', C_out]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, bias: bool, rngs: nnx.Rngs):
        self.stride = stride
        init = nnx.initializers.he_normal(in_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (kernel, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(
            x, self.kernel[...], (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y if self.bias is None else y + self.bias[...]


class ChannelNorm(nnx.Module):
    """GroupNorm with one group a channel: each channel is normalised over its own clip's frames."""

    def __init__(self, channels: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """x [B, T, C], mean and variance [B, 1, C] -> [B, T, C]."""
        return (x - mean) * lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]


def channel_moments(x: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [B, 1, C] of the first `frames` [B] of x [B, T, C]."""
    # Padding takes no part, so a clip is normalised alike alone and in a batch.
    weights = (jnp.arange(x.shape[1]) < frames[:, None]) / jnp.maximum(frames, 1)[:, None]
    mean = jnp.einsum("BTC,BT->BC", x, weights)[:, None]
    return mean, jnp.einsum("BTC,BT->BC", jnp.square(x - mean), weights)[:, None]


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
        self.projection = _linear(widths[-1], config.hidden_size, (None, "embed"), rngs)

    def analyse(self, wav: jax.Array) -> jax.Array:
        """wav [B, S] -> the first layer's [B, T', C]."""
        return self.conv_layers[0](wav[..., None])

    def moments(self, x: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the first `frames` [B] of x [B, T', C], what `__call__` normalises by."""
        return channel_moments(x, frames)

    @staticmethod
    def pool(moments: list, frames: list[int]) -> tuple[jax.Array, jax.Array]:
        """Moments of pieces of a clip, of so many frames each -> moments of the clip."""
        means, variances = np.array(moments, np.float64).swapaxes(0, 1)
        mean = np.average(means, 0, frames)
        variance = np.average(variances + np.square(means - mean), 0, frames)
        return jnp.asarray(mean, jnp.float32), jnp.asarray(variance, jnp.float32)

    def __call__(self, x: jax.Array, moments: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The first layer's x [B, T', C] and the clip's moments -> [B, T, D]."""
        x = jax.nn.gelu(self.group_norm(x, *moments), approximate=False)
        for conv in self.conv_layers[1:]:
            x = jax.nn.gelu(conv(x), approximate=False)
        return self.projection(self.layer_norm(x))


class MelFrontEnd(nnx.Module):
    """Convolutions over Whisper's log-mel spectrogram, taken relative to the clip's loudest band.

    The functions are those of `WaveFrontEnd`; the moments are the one peak [B, 1, 1].
    """

    # Of the spectrogram, in powers of ten: how far below the peak it ends, and the peak's value.
    DEPTH, PEAK = 8.0, 1.5

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        widths = config.conv_dim
        if widths[-1] != config.hidden_size:
            raise ValueError(
                f"conv_dim {widths} must end in hidden_size {config.hidden_size}: this front end"
                " has no projection."
            )
        self.num_mels = widths[0]
        self.window, self.hop = config.conv_kernel[0], config.conv_stride[0]
        self.conv_layers = nnx.List(
            Conv(*shape, bias=True, rngs=rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel[1:], config.conv_stride[1:])
        )

    def analyse(self, wav: jax.Array) -> jax.Array:
        filters = mel_filterbank(SAMPLE_RATE, self.window, self.num_mels, 0.0, SAMPLE_RATE / 2)
        mel = power(frames_of(wav, self.window, self.hop)) @ filters
        return jnp.log10(jnp.maximum(mel, 1e-10))

    def moments(self, x: jax.Array, frames: jax.Array) -> jax.Array:
        heard = (jnp.arange(x.shape[1]) < frames[:, None])[..., None]
        return jnp.where(heard, x, -10.0).max((1, 2), keepdims=True)

    @staticmethod
    def pool(moments: list, frames: list[int]) -> jax.Array:
        del frames
        return jnp.max(jnp.stack(moments), axis=0)

    def __call__(self, x: jax.Array, moments: jax.Array) -> jax.Array:
        x = (jnp.maximum(x - moments, -self.DEPTH) + 4.0 + self.PEAK) / 4.0
        for conv in self.conv_layers:
            x = jax.nn.gelu(conv(x), approximate=False)
        return x


FRONT_ENDS = {"wave": WaveFrontEnd, "mel": MelFrontEnd}


class PositionalConv(nnx.Module):
    """Relative positions by a grouped convolution over time (weight norm already folded in)."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.groups = config.position_groups
        kernel, width = config.position_kernel, config.hidden_size
        shape = (kernel, width // self.groups, width)
        # As in wav2vec 2.0: variance 4 / (kernel * width).
        scale = math.sqrt(4 / (kernel * width))
        kernel = jax.random.normal(rngs.params(), shape) * scale
        self.kernel = nnx.Param(kernel, **_named((None, None, "embed")))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:  # BTD, any -> BTD
        del first  # Where x begins makes no difference.
        # An even kernel pads both sides by half and drops the last frame.
        half = self.kernel.shape[0] // 2
        right = half - 1 if self.kernel.shape[0] % 2 == 0 else half
        # Group by group: the gradient of a grouped convolution comes out wrong where its batch lies
        # over several devices (jax 0.10.2).
        groups = zip(
            jnp.split(x, self.groups, axis=-1), jnp.split(self.kernel[...], self.groups, axis=-1)
        )
        y = [
            lax.conv_general_dilated(
                rows, kernel, (1,), [(half, right)], dimension_numbers=("NWC", "WIO", "NWC")
            )
            for rows, kernel in groups
        ]
        y = jnp.concatenate(y, axis=-1)
        return jax.nn.gelu(y + self.bias[...], approximate=False)


class SinusoidalPositions(nnx.Module):
    """Sines and cosines, added; what is further apart than attention reaches need not differ."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        del rngs
        self.period = config.position_period

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """x [B, T, D], the number of its first frame -> [T, D]."""
        numbers = (first + jnp.arange(x.shape[1])) % self.period
        return jnp.asarray(sinusoids(self.period, x.shape[2]))[numbers]


@functools.cache
def sinusoids(period: int, width: int) -> np.ndarray:
    """[period, width]: sines, then cosines, that go round 0 to period / 6.3 times in a period."""
    cycles = np.rint(period / (2 * np.pi) * 10_000.0 ** -np.linspace(0, 1, width // 2))
    angles = 2 * np.pi / period * np.outer(np.arange(period), cycles)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nnx.Module):
    """Self-attention over the valid frames, or those of them that are near."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.num_heads, self.frames = config.num_heads, config.attention_frames
        width = config.hidden_size
        self.q_proj = _linear(width, width, ("embed", "heads"), rngs)
        self.k_proj = _linear(width, width, ("embed", "heads"), rngs)
        self.v_proj = _linear(width, width, ("embed", "heads"), rngs)
        self.out_proj = _linear(width, width, ("heads", "embed"), rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:  # BTD, B -> BTD
        batch, frames, width = x.shape
        q, k, v = (
            proj(x).reshape(batch, frames, self.num_heads, -1)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = _attend_by_head if jax.default_backend() == "cpu" else _attend
        return self.out_proj(attend(q, k, v, lengths, self.frames).reshape(batch, frames, width))


def _attend(q, k, v, lengths, near):  # BTNH, BSNH, BSNH, B, int | None -> BTNH
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, local_window_size=near
    )


def _attend_by_head(q, k, v, lengths, near):
    """The same. XLA's batched products of this layout are 2.5 times slower on a CPU than this."""
    hidden = (jnp.arange(k.shape[1]) >= lengths[:, None])[:, None]  # B1S
    if near is not None:
        at = jnp.arange(k.shape[1])
        hidden |= abs(at[:, None] - at) > near  # BTS
    heads = []
    for n in range(q.shape[2]):
        scores = jnp.einsum("BTH,BSH->BTS", q[:, :, n] * q.shape[3] ** -0.5, k[:, :, n])
        weights = jax.nn.softmax(jnp.where(hidden, -1e30, scores))
        heads.append(jnp.einsum("BTS,BSH->BTH", weights, v[:, :, n]))
    return jnp.stack(heads, axis=2)


class EncoderLayer(nnx.Module):
    """A Transformer layer, LayerNorm after or before each of its halves."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.attention = Attention(config, rngs)
        self.layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.intermediate_dense = _linear(width, inner, ("embed", "mlp"), rngs)
        self.output_dense = _linear(inner, width, ("mlp", "embed"), rngs)
        self.final_layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:  # BTD, B -> BTD
        if self.norm_first:
            x = x + self.attention(self.layer_norm(x), lengths)
            return x + self._mlp(self.final_layer_norm(x))
        x = self.layer_norm(x + self.attention(x, lengths))
        return self.final_layer_norm(x + self._mlp(x))

    def _mlp(self, x: jax.Array) -> jax.Array:  # BTD -> BTD
        return self.output_dense(jax.nn.gelu(self.intermediate_dense(x), approximate=False))


class Hubert(nnx.Module):
    """Front end and Transformer encoder.

    >>> hubert = Hubert(HubertConfig.tiny(), rngs=nnx.Rngs(0))
    >>> hubert(jnp.zeros([1, 16000]), jnp.array([16000])).shape
    (1, 49, 384)
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.front_end = FRONT_ENDS[config.front_end](config, rngs)
        positions = SinusoidalPositions if config.position_period else PositionalConv
        self.positions = positions(config, rngs)
        self.layer_norm = nnx.LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs
        )
        self.layers = nnx.List(EncoderLayer(config, rngs) for _ in range(config.num_layers))

    def __call__(self, wav: jax.Array, lengths: jax.Array) -> jax.Array:
        """wav [B, S] float32, lengths [B] in samples -> features [B, T, D] of `feature_layer`.

        Frames past `config.num_frames(lengths)` hold nothing of meaning.
        """
        frames = self.config.num_frames(lengths)
        return self.encode(self.project(wav, lengths), frames, self.config.feature_layer)

    def project(self, wav: jax.Array, lengths: jax.Array) -> jax.Array:
        """The front end: wav [B, S], lengths [B] in samples -> [B, T, D] before the Transformer."""
        silence = self.config.padding
        wav = jnp.where(jnp.arange(wav.shape[1]) < lengths[:, None], wav, 0.0)
        x = self.front_end.analyse(jnp.pad(wav, ((0, 0), (silence, silence))))
        return self.front_end(x, self.moments(x, lengths + 2 * silence))

    def moments(self, x: jax.Array, lengths: jax.Array):
        """The front end's of what it made of `lengths` [B] samples: x [B, T', C]."""
        kernel, stride = self.config.conv_kernel[0], self.config.conv_stride[0]
        return self.front_end.moments(x, jnp.maximum((lengths - kernel) // stride + 1, 0))

    def encode(self, x: jax.Array, frames: jax.Array, layer: int, first: jax.Array | int = 0):
        """The Transformer: x [B, T, D], frames [B] -> features [B, T, D] of `layer`, from 1.

        `first` is the number of the first frame of x in its recording.
        """
        x = x * (jnp.arange(x.shape[1]) < frames[:, None])[..., None]
        x = x + self.positions(x, first)
        if not self.config.norm_first:
            x = self.layer_norm(x)
        for encoder_layer in self.layers[:layer]:
            x = encoder_layer(x, frames)
        return self.layer_norm(x) if self.config.norm_first else x
