"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): 16 kHz sound -> 50 feature vectors a second.

Shapes: B batch, S samples, T frames, D hidden size, N heads, H head size.
Layer names are those of `transformers.HubertModel`, so weights convert by a table. Large parameters
carry the logical axis names of `sharding`, so that pre-training shards as the language model does.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech.cpu.strassen import StrassenMlp
from speechgpt_jax.speech.encoder.attention import attend
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.front_ends import FRONT_ENDS, convolve, gelu, linear, named


class PositionalConv(nnx.Module):
    """Relative positions by a grouped convolution over time (weight norm already folded in)."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.groups = config.position_groups
        kernel, width = config.position_kernel, config.hidden_size
        shape = (kernel, width // self.groups, width)
        # As in wav2vec 2.0: variance 4 / (kernel * width).
        scale = math.sqrt(4 / (kernel * width))
        kernel = jax.random.normal(rngs.params(), shape) * scale
        self.kernel = nnx.Param(kernel, **named((None, None, "embed")))
        self.bias = nnx.Param(jnp.zeros(width))

    @property
    def context(self) -> tuple[int, int]:
        """How many frames before and after its own a position depends on."""
        # An even kernel pads both sides by half and drops the last frame.
        size = self.kernel.shape[0]
        return size // 2, (size - 1) // 2

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """Frames with their context [B, before + T + after, D] -> [B, T, D]."""
        del first  # Where x begins makes no difference.
        # Group by group: the gradient of a grouped convolution comes out wrong where its batch lies
        # over several devices (jax 0.10.2).
        groups = zip(
            jnp.split(x, self.groups, axis=-1), jnp.split(self.kernel[...], self.groups, axis=-1)
        )
        y = jnp.concatenate([convolve(rows, kernel) for rows, kernel in groups], axis=-1)
        return gelu(y + self.bias[...])


class SinusoidalPositions(nnx.Module):
    """Sines and cosines, added; what is further apart than attention reaches need not differ."""

    context = (0, 0)

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        del rngs
        self.period = config.position_period

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """x [B, T, D], the number of its first frame, [] or [B] -> [T, D] or [B, T, D]."""
        numbers = (jnp.asarray(first)[..., None] + jnp.arange(x.shape[1])) % self.period
        return jnp.asarray(sinusoids(self.period, x.shape[2]))[numbers]


@functools.cache
def sinusoids(period: int, width: int) -> np.ndarray:
    """[period, width]: sines, then cosines, that go round 0 to period / 6.3 times in a period."""
    cycles = np.rint(period / (2 * np.pi) * 10_000.0 ** -np.linspace(0, 1, width // 2))
    angles = 2 * np.pi / period * np.outer(np.arange(period), cycles)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nnx.Module):
    """Self-attention over the frames of the same recording, or those of them that are near."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.num_heads, self.near = config.num_heads, config.attention_frames
        width = config.hidden_size
        self.q_proj = linear(width, width, ("embed", "heads"), rngs)
        self.k_proj = linear(width, width, ("embed", "heads"), rngs)
        self.v_proj = linear(width, width, ("embed", "heads"), rngs)
        self.out_proj = linear(width, width, ("heads", "embed"), rngs)

    def __call__(self, x: jax.Array, segments: jax.Array, others=None) -> jax.Array:
        """See `EncoderLayer`."""
        k, v, key_segments = others or (*self.keys_values(x), segments)
        heard = attend(self._heads(self.q_proj(x)), k, v, segments, key_segments, self.near)
        return self.out_proj(heard.reshape(x.shape))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:  # BTD -> BTNH, BTNH
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def _heads(self, x: jax.Array) -> jax.Array:  # BTD -> BTNH
        x = x.reshape(*x.shape[:2], self.num_heads, -1)
        return x.astype(self.k_proj.kernel.dtype)


class EncoderLayer(nnx.Module):
    """A Transformer layer, LayerNorm after or before each of its halves."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.attention = Attention(config, rngs)
        self.layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.intermediate_dense = linear(width, inner, ("embed", "mlp"), rngs)
        self.output_dense = linear(inner, width, ("mlp", "embed"), rngs)
        self.final_layer_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.strassen_mlp = nnx.data(None)

    def __call__(self, x: jax.Array, segments: jax.Array, others=None) -> jax.Array:
        """x [B, T, D], segments [B, T]: whose frames they are -> [B, T, D].

        Frames attend to those of the same segment: of x, or of `others`, keys and values
        [B, S, N, H] with their segments [B, S].
        """
        if self.norm_first:
            x = x + self.attention(self.layer_norm(x), segments, others)
            return x + self._mlp(self.final_layer_norm(x))
        x = self.layer_norm(x + self.attention(x, segments, others))
        return self.final_layer_norm(x + self._mlp(x))

    @property
    def dtype(self):
        """Of the numbers that are multiplied."""
        return self.attention.k_proj.kernel.dtype

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:  # BTD -> BTNH, BTNH
        """What frames, of this piece of a recording or of another, attend to."""
        return self.attention.keys_values(self.layer_norm(x) if self.norm_first else x)

    def prepare(self) -> None:
        """Makes what is multiplied less often, from kernels that will no longer change."""
        self.strassen_mlp = StrassenMlp(self.intermediate_dense, self.output_dense, gelu)
        del self.intermediate_dense, self.output_dense

    def _mlp(self, x: jax.Array) -> jax.Array:  # BTD -> BTD
        if self.strassen_mlp:
            return self.strassen_mlp(x)
        return self.output_dense(gelu(self.intermediate_dense(x)))


def with_neighbours(x: jax.Array, segments: jax.Array, reach: int) -> jax.Array:
    """x [B, T, D] -> [B, T, 3 D]: the frame `reach` before, the frame, the frame `reach` after.

    Where that is of another segment or none, the frame itself stands for it.
    """
    padding = ((0, 0), (reach, reach))
    frames, steps = jnp.pad(x, (*padding, (0, 0))), x.shape[1]
    numbers = jnp.pad(segments, padding, constant_values=-1)
    others = [
        jnp.where((numbers[:, i : i + steps] == segments)[..., None], frames[:, i : i + steps], x)
        for i in (0, 2 * reach)
    ]
    return jnp.concatenate([others[0], x, others[1]], axis=-1)


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
    def dtype(self):
        """Of the numbers that are multiplied."""
        return self.layers[0].dtype

    def prepare(self, dtype=jnp.float32) -> None:
        """Hears faster, with parameters that will no longer change.

        Args:
          dtype: of the numbers that are multiplied, but for those of the layer that meets samples;
            sums, norms and softmax are float32 all the same.
        """

        def cast(path, parameter):
            multiplies = path[-1] == "kernel" and parameter.shape[-2] > 1
            value = parameter[...]
            return parameter.replace(value.astype(dtype) if multiplies else value)

        nnx.update(self, nnx.map_state(cast, nnx.state(self, nnx.Param)))
        if jax.default_backend() == "cpu":
            self.front_end.prepare()
            if dtype == jnp.float32:
                for layer in self.layers:
                    layer.prepare()

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
        wav = jnp.pad(wav, ((0, 0), (silence, silence)))
        frames = self.config.first_frames(lengths + 2 * silence)
        return self.front_end(wav, self.front_end.moments(wav, frames))

    def encode(self, x: jax.Array, frames: jax.Array, layer: int, first: jax.Array | int = 0):
        """The Transformer: x [B, T, D], frames [B] -> features [B, T, D] of `layer`, from 1.

        `first` is the number of the first frame of x in its recording.
        """
        segments = (jnp.arange(x.shape[1]) < frames[:, None]).astype(jnp.int32)
        context = ((0, 0), self.positions.context, (0, 0))
        return self.transform(
            self.begin(jnp.pad(x * segments[..., None], context), first), segments, layer
        )

    def begin(self, x: jax.Array, first: jax.Array | int) -> jax.Array:
        """What the first layer is given: frames with the context that their positions depend on.

        x [B, before + T + after, D], number of the first of the T, [] or [B] -> [B, T, D].
        """
        before, after = self.positions.context
        x = x[:, before : x.shape[1] - after] + self.positions(x, first)
        return x if self.config.norm_first else self.layer_norm(x)

    def transform(self, x: jax.Array, segments: jax.Array, layer: int) -> jax.Array:
        """What `begin` gave [B, T, D], whose frames they are [B, T] -> features of `layer`."""
        for encoder_layer in self.layers[:layer]:
            x = encoder_layer(x, segments)
        return self.end(x, segments)

    def end(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """The features [B, T, feature_size] of what a layer gave."""
        x = self.layer_norm(x) if self.config.norm_first else x
        if self.config.projection_reach:
            x = with_neighbours(x, segments, self.config.projection_reach)
        return x if self.projection is None else self.projection(x)
