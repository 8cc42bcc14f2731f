"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): 16 kHz sound -> 50 feature vectors a second.

Shapes: B batch, S samples, T frames, C convolution channels, D hidden size, N heads, H head size.
Layer names are those of `transformers.HubertModel`, so weights convert by a table. Large parameters
carry the logical axis names of `sharding`, so that pre-training shards as the language model does.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Sizes of a HuBERT; the defaults are the base model (95 M parameters)."""

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
    # 1-based layer whose output is the features.
    feature_layer: int = 11

    @classmethod
    def base(cls) -> "HubertConfig":
        """The shape of mHuBERT: units come from layer 11 of 12."""
        return cls()

    @classmethod
    def tiny(cls) -> "HubertConfig":
        """4 M parameters: the shipped tokenizer of the demo world."""
        return cls(
            conv_dim=(64, 64, 128, 128, 192, 192, 256),
            hidden_size=256,
            num_layers=4,
            num_heads=4,
            intermediate_size=1024,
            position_kernel=32,
            feature_layer=4,
        )

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: 320, which is 20 ms at 16 kHz."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples one frame sees before the Transformer: 400, so shorter sound has no frame."""
        field, step = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    def num_frames(self, samples):
        """16000 samples -> 49 frames; fewer than 400 samples -> 0. Works on ints and arrays."""
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

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        init = nnx.initializers.he_normal(in_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (kernel, c_in, c_out)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, self.kernel[...], (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )


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

    def __call__(self, x: jax.Array) -> jax.Array:  # BTD -> BTD
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


class Attention(nnx.Module):
    """Self-attention over the valid frames."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
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
        return self.out_proj(attend(q, k, v, lengths).reshape(batch, frames, width))


def _attend(q, k, v, lengths):  # BTNH, BSNH, BSNH, B -> BTNH
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths)


def _attend_by_head(q, k, v, lengths):
    """The same. XLA's batched products of this layout are 2.5 times slower on a CPU than this."""
    hidden = (jnp.arange(k.shape[1]) >= lengths[:, None])[:, None]  # B1S
    heads = []
    for n in range(q.shape[2]):
        scores = jnp.einsum("BTH,BSH->BTS", q[:, :, n] * q.shape[3] ** -0.5, k[:, :, n])
        weights = jax.nn.softmax(jnp.where(hidden, -1e30, scores))
        heads.append(jnp.einsum("BTS,BSH->BTH", weights, v[:, :, n]))
    return jnp.stack(heads, axis=2)


class EncoderLayer(nnx.Module):
    """A post-LayerNorm Transformer layer."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention = Attention(config, rngs)
        self.layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.intermediate_dense = _linear(width, inner, ("embed", "mlp"), rngs)
        self.output_dense = _linear(inner, width, ("mlp", "embed"), rngs)
        self.final_layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:  # BTD, B -> BTD
        x = self.layer_norm(x + self.attention(x, lengths))
        hidden = jax.nn.gelu(self.intermediate_dense(x), approximate=False)
        return self.final_layer_norm(x + self.output_dense(hidden))


class Hubert(nnx.Module):
    """Convolutional front end and Transformer encoder.

    >>> hubert = Hubert(HubertConfig.tiny(), rngs=nnx.Rngs(0))
    >>> hubert(jnp.zeros([1, 16000]), jnp.array([16000])).shape
    (1, 49, 256)
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = (1, *config.conv_dim)
        self.conv_layers = nnx.List(
            Conv(*shape, rngs)
            for shape in zip(widths, widths[1:], config.conv_kernel, config.conv_stride)
        )
        eps = config.layer_norm_eps
        self.group_norm = ChannelNorm(config.conv_dim[0], eps)
        self.feature_layer_norm = nnx.LayerNorm(config.conv_dim[-1], epsilon=eps, rngs=rngs)
        self.feature_projection = _linear(
            config.conv_dim[-1], config.hidden_size, (None, "embed"), rngs
        )
        self.positions = PositionalConv(config, rngs)
        self.layer_norm = nnx.LayerNorm(config.hidden_size, epsilon=eps, rngs=rngs)
        self.layers = nnx.List(EncoderLayer(config, rngs) for _ in range(config.num_layers))

    def __call__(self, wav: jax.Array, lengths: jax.Array) -> jax.Array:
        """wav [B, S] float32, lengths [B] in samples -> features [B, T, D] of `feature_layer`.

        Frames past `config.num_frames(lengths)` hold nothing of meaning.
        """
        frames = self.config.num_frames(lengths)
        return self.encode(self.project(wav, lengths), frames, self.config.feature_layer)

    def moments(self, wav: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """wav [B, S], lengths [B] -> mean and variance [B, 1, C] that `project` normalises by."""
        return self._first_layer(wav, lengths)[1]

    def project(self, wav: jax.Array, lengths: jax.Array, moments=None) -> jax.Array:
        """The front end: wav [B, S], lengths [B] in samples -> [B, T, D] before the Transformer.

        It is the same for a clip and for a piece of it that is given the `moments` of the whole.
        """
        x, own_moments = self._first_layer(wav, lengths)
        x = jax.nn.gelu(self.group_norm(x, *(moments or own_moments)), approximate=False)
        for conv in self.conv_layers[1:]:
            x = jax.nn.gelu(conv(x), approximate=False)
        return self.feature_projection(self.feature_layer_norm(x))

    def _first_layer(self, wav, lengths):
        x = self.conv_layers[0](wav[..., None])
        frames = (lengths - self.config.conv_kernel[0]) // self.config.conv_stride[0] + 1
        return x, channel_moments(x, jnp.maximum(frames, 0))

    def encode(self, x: jax.Array, frames: jax.Array, layer: int) -> jax.Array:
        """The Transformer: x [B, T, D], frames [B] -> features [B, T, D] of `layer`, from 1."""
        x = x * (jnp.arange(x.shape[1]) < frames[:, None])[..., None]
        x = self.layer_norm(x + self.positions(x))
        for encoder_layer in self.layers[:layer]:
            x = encoder_layer(x, frames)
        return x
