"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): sound at 16 kHz -> 50 feature vectors per second.

Layer names are those of `transformers.HubertModel`, so weights convert by a table. Large parameters
carry the logical axis names of `sharding`, so pre-training is sharded like the language model.

Shapes: B batch, S samples, T frames, D hidden size, N heads, H head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech.encoder.attention import attend_masked, attend_nearby
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.front_ends import FRONT_ENDS, axis_names, convolve, gelu, linear

KeysValues = tuple[jax.Array, jax.Array, jax.Array]  # Keys, values [B, S, N, H], segments [B, S].


class PositionalConv(nnx.Module):
    """Relative positions by a grouped convolution over time (weight norm is folded in)."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.groups = config.position_groups
        kernel, width = config.position_kernel, config.hidden_size
        shape = (kernel, width // self.groups, width)
        # The initial variance of wav2vec 2.0: 4 / (kernel * width).
        scale = math.sqrt(4 / (kernel * width))
        kernel = jax.random.normal(rngs.params(), shape) * scale
        self.kernel = nnx.Param(kernel, **axis_names((None, None, "embed")))
        self.bias = nnx.Param(jnp.zeros(width))

    @property
    def context(self) -> tuple[int, int]:
        """Number of frames before and after a frame that its positional embedding depends on."""
        # An even kernel pads both sides by half and drops the last frame.
        size = self.kernel.shape[0]
        return size // 2, (size - 1) // 2

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """Frames with their context [B, before + T + after, D] -> [B, T, D]."""
        del first  # Positions are relative.
        # Group by group: the gradient of a grouped convolution comes out wrong where its batch lies
        # over several devices (jax 0.10.2).
        groups = zip(
            jnp.split(x, self.groups, axis=-1), jnp.split(self.kernel[...], self.groups, axis=-1)
        )
        y = jnp.concatenate([convolve(rows, kernel) for rows, kernel in groups], axis=-1)
        return gelu(y + self.bias[...])


class SinusoidalPositions(nnx.Module):
    """Whisper's sinusoids, made periodic so that a recording may have any length."""

    context = (0, 0)

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        del rngs
        self.period = config.position_period

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """x [B, T, D], index of its first frame [] or [B] -> [T, D] or [B, T, D]."""
        positions = (jnp.asarray(first)[..., None] + jnp.arange(x.shape[1])) % self.period
        return jnp.asarray(sinusoids(self.period, x.shape[2]))[positions]


@functools.cache
def sinusoids(period: int, width: int) -> np.ndarray:
    """Sines, then cosines, [period, width], each with a whole number of cycles per period."""
    cycles = np.rint(period / (2 * np.pi) * 10_000.0 ** -np.linspace(0, 1, width // 2))
    angles = 2 * np.pi / period * np.outer(np.arange(period), cycles)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nnx.Module):
    """Self-attention among the frames of a recording, all of them or those nearby."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.num_heads, self.reach = config.num_heads, config.attention_frames
        # `cpu.inference` puts a faster one here, without gradients.
        self.attend_to_all = attend_masked
        width = config.hidden_size
        self.q_proj = linear(width, width, ("embed", "heads"), rngs)
        self.k_proj = linear(width, width, ("embed", "heads"), rngs)
        self.v_proj = linear(width, width, ("embed", "heads"), rngs)
        self.out_proj = linear(width, width, ("heads", "embed"), rngs)

    def __call__(
        self, x: jax.Array, segments: jax.Array, attended: KeysValues | None = None
    ) -> jax.Array:
        """See `EncoderLayer`."""
        q = self._heads(self.q_proj(x))
        k, v, key_segments = attended or (*self.keys_values(x), segments)
        if self.reach is None:
            y = self.attend_to_all(q, k, v, segments, key_segments)
        else:
            y = attend_nearby(q, k, v, segments, self.reach)
        return self.out_proj(y.reshape(x.shape))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D] -> keys [B, T, N, H], values [B, T, N, H]."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def _heads(self, x: jax.Array) -> jax.Array:  # BTD -> BTNH
        x = x.reshape(*x.shape[:2], self.num_heads, -1)
        return x.astype(self.k_proj.kernel.dtype)


class EncoderLayer(nnx.Module):
    """Transformer layer with LayerNorm after or before attention and MLP."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.attention = Attention(config, rngs)
        self.layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.intermediate_dense = linear(width, inner, ("embed", "mlp"), rngs)
        self.output_dense = linear(inner, width, ("mlp", "embed"), rngs)
        self.final_layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)

    def __call__(
        self, x: jax.Array, segments: jax.Array, attended: KeysValues | None = None
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D].

        Args:
          x: frames.
          segments: [B, T], the number of each frame's recording. Frames attend to those of the same
            recording.
          attended: keys and values [B, S, N, H] to attend to, with their segments [B, S]; by
            default those of x.
        """
        if self.norm_first:
            x = x + self.attention(self.layer_norm(x), segments, attended)
            return x + self._mlp(self.final_layer_norm(x))
        x = self.layer_norm(x + self.attention(x, segments, attended))
        return self.final_layer_norm(x + self._mlp(x))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Frames x [B, T, D] of a recording or of a part of it -> keys, values [B, T, N, H]."""
        return self.attention.keys_values(self.layer_norm(x) if self.norm_first else x)

    def _mlp(self, x: jax.Array) -> jax.Array:  # BTD -> BTD
        return self.output_dense(gelu(self.intermediate_dense(x)))


def with_neighbours(x: jax.Array, segments: jax.Array, distance: int) -> jax.Array:
    """x [B, T, D] -> [B, T, 3 D]: frame t - distance, frame t, frame t + distance.

    Frame t replaces a neighbour that is in another segment or beyond the ends.
    """
    padding = ((0, 0), (distance, distance))
    frames, steps = jnp.pad(x, (*padding, (0, 0))), x.shape[1]
    numbers = jnp.pad(segments, padding, constant_values=-1)
    neighbours = [
        jnp.where((numbers[:, i : i + steps] == segments)[..., None], frames[:, i : i + steps], x)
        for i in (0, 2 * distance)
    ]
    return jnp.concatenate([neighbours[0], x, neighbours[1]], axis=-1)


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
        width, size = config.projected_size, config.projection_size
        self.projection = linear(width, size, ("embed", None), rngs) if size else None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the factors of matrix products."""
        return self.layers[0].attention.k_proj.kernel.dtype

    def __call__(self, wav: jax.Array, lengths: jax.Array) -> jax.Array:
        """wav [B, S] float32, lengths [B] in samples -> features [B, T, D] of `feature_layer`.

        Frames from `config.num_frames(lengths)` on are padding.
        """
        frames = self.config.num_frames(lengths)
        return self.encode(self.project(wav, lengths), frames, self.config.feature_layer)

    def project(self, wav: jax.Array, lengths: jax.Array) -> jax.Array:
        """Front end: wav [B, S], lengths [B] in samples -> [B, T, D] before the Transformer."""
        silence = self.config.padding
        inside = jnp.arange(wav.shape[1]) < lengths[:, None]
        if self.config.normalize:
            wav = standardize(wav, axis=1, where=inside)
        wav = jnp.pad(jnp.where(inside, wav, 0.0), ((0, 0), (silence, silence)))
        frames = self.config.first_frames(lengths + 2 * silence)
        return self.front_end(wav, self.front_end.statistics(wav, frames))

    def encode(
        self, x: jax.Array, frames: jax.Array, layer: int, first: jax.Array | int = 0
    ) -> jax.Array:
        """Transformer: output of `project` [B, T, D] -> features [B, T, feature_size].

        Args:
          x: [B, T, D].
          frames: [B], number of frames before the padding.
          layer: number of the layer, from 1, whose output becomes the features.
          first: index of x's first frame in its recording.
        """
        segments = (jnp.arange(x.shape[1]) < frames[:, None]).astype(jnp.int32)
        context = ((0, 0), self.positions.context, (0, 0))
        x = self.add_positions(jnp.pad(x * segments[..., None], context), first)
        return self.transform(x, segments, layer)

    def add_positions(self, x: jax.Array, first: jax.Array | int) -> jax.Array:
        """Input of the first layer, [B, T, D].

        Args:
          x: [B, before + T + after, D], frames with the context of `positions`.
          first: index in the recording of the first of the T frames, [] or [B].
        """
        before, after = self.positions.context
        x = x[:, before : x.shape[1] - after] + self.positions(x, first)
        return x if self.config.norm_first else self.layer_norm(x)

    def transform(self, x: jax.Array, segments: jax.Array, layer: int) -> jax.Array:
        """Input of the first layer [B, T, D], segments [B, T] -> features [B, T, feature_size]."""
        for encoder_layer in self.layers[:layer]:
            x = encoder_layer(x, segments)
        return self.to_features(x, segments)

    def to_features(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Output of a layer [B, T, D], segments [B, T] -> features [B, T, feature_size]."""
        x = self.layer_norm(x) if self.config.norm_first else x
        if self.config.projection_reach:
            x = with_neighbours(x, segments, self.config.projection_reach)
        return x if self.projection is None else self.projection(x)


def standardize(
    wav: jax.Array | np.ndarray, axis: int | None = None, where: jax.Array | bool = True
) -> jax.Array | np.ndarray:
    """wav [S] or [B, S] -> the same shape, at mean 0 and variance 1.

    Computed as in `transformers.Wav2Vec2FeatureExtractor`.

    Args:
      wav: float32 samples.
      axis: axis of the mean and the variance; None: all.
      where: the samples that count for the mean and the variance, of the shape of wav.
    """
    mean = wav.mean(axis=axis, where=where, keepdims=True)
    variance = wav.var(axis=axis, where=where, keepdims=True)
    return (wav - mean) / (variance + 1e-7) ** 0.5
