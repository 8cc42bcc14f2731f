"""Layers of the language model: Dense with LoRA, RMSNorm, rotary positions.

Parameters carry logical axis names (`embed`, `heads`, ...) as `out_sharding` metadata; `sharding`
maps the names to mesh axes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.collectives import Axes, matmul

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

normal_init = nnx.initializers.truncated_normal(stddev=0.02)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): y = x W + scale * dropout(x) A B.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the adapter's output is scaled by alpha / rank.
      rank_stabilized: it is scaled by alpha / sqrt(rank) instead (Kalajdzievski 2023).
      dropout: probability with which an input of the adapter is set to zero in training.
      targets: names of the projections that get an adapter.
      new_tokens_from: id of the first new token. The rows of this token and of all tokens after it,
        in the embedding and in the output layer, belong to the adapter and replace those of the
        base. None: the adapter has no rows.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank_stabilized: bool = False
    new_tokens_from: int | None = None

    def __post_init__(self):
        check_number("LoRA rank", self.rank, at_least=1)
        check_number("LoRA alpha", self.alpha, above=0)
        check_number("LoRA dropout", self.dropout, at_least=0, below=1)
        if self.new_tokens_from is not None:
            check_number("new_tokens_from", self.new_tokens_from, at_least=1)
        if unknown := set(self.targets) - set(PROJECTIONS):
            raise UserError(
                f"Unknown LoRA targets {sorted(unknown)}; choose from {', '.join(PROJECTIONS)}."
            )
        # Gin may give a list, and a config must be hashable.
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


def parameter(value: jax.Array, axes: Axes, kind: type = nnx.Param) -> nnx.Param:
    """A parameter with one logical axis name (or None) per dimension."""
    # Eager sharding would require a mesh even on a single device.
    return kind(value, out_sharding=axes, eager_sharding=False)


class Dense(nnx.Module):
    """A linear layer, [..., in_features] -> [..., out_features], and its adapter.

    The kernel is stored in float32, or in int8 with one scale per output, and used in the dtype of
    the input. `lora_b` starts at zero, so a new adapter changes nothing.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: Axes,
        *,
        bias: bool = False,
        lora: LoraConfig | None,
        rngs: nnx.Rngs,
    ):
        in_axis, out_axis = axes
        self.axes = axes
        self.lora = lora
        self.kernel = parameter(normal_init(rngs.params(), (in_features, out_features)), axes)
        self.kernel_scale = nnx.data(None)
        self.bias = parameter(jnp.zeros(out_features), (out_axis,)) if bias else None
        if lora:
            bound = in_features**-0.5
            a = jax.random.uniform(
                rngs.params(), (in_features, lora.rank), minval=-bound, maxval=bound
            )
            self.lora_a = parameter(a, (in_axis, "rank"), nnx.LoRAParam)
            self.lora_b = parameter(
                jnp.zeros((lora.rank, out_features)), ("rank", out_axis), nnx.LoRAParam
            )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[..., in_features] -> [..., out_features].

        With `rngs` (stream `dropout`), dropout is applied to the adapter's input.
        """
        y = matmul(x, self.kernel.astype(x.dtype), self.axes)
        if self.kernel_scale is not None:
            y = y * self.kernel_scale.astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias.astype(x.dtype)
        return y + self._adapter(x, self.lora, rngs) if self.lora else y

    def _adapter(self, x, lora, rngs):
        if rngs is not None and lora.dropout > 0:
            keep = jax.random.bernoulli(rngs.dropout(), 1 - lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - lora.dropout), 0)
        low_rank = matmul(x, self.lora_a.astype(x.dtype), (self.axes[0], "rank"))
        adapted = matmul(low_rank, self.lora_b.astype(x.dtype), ("rank", self.axes[1]))
        return adapted * lora.scale

    def quantize(self) -> None:
        """Rounds the kernel [..., in_features, out_features] to int8, with one scale per output."""
        import qwix  # Slow to import, and only an int8 base needs it.

        inputs, outputs = self.kernel.ndim - 2, self.kernel.ndim - 1
        axes = list(self.kernel.get_metadata("out_sharding"))
        quantized = qwix.quantize(
            self.kernel[...], "int8", channelwise_axes=(*range(inputs), outputs)
        )
        self.kernel = parameter(quantized.qvalue, tuple(axes))
        axes[inputs] = None
        self.kernel_scale = parameter(quantized.scale, tuple(axes))

    def merge_adapter(self) -> None:
        """Adds the adapter to the kernel, which is float32 after this.

        The layer computes the same function with one matrix product instead of three.
        """
        if self.kernel_scale is not None:
            axes = self.kernel.get_metadata("out_sharding")
            self.kernel = parameter(self.kernel * self.kernel_scale, axes)
            self.kernel_scale = nnx.data(None)
        if self.lora:
            self.kernel[...] += self.lora.scale * self.lora_a @ self.lora_b
            del self.lora_a, self.lora_b
            self.lora = None


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = parameter(jnp.ones(features), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        x32 = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse_rms).astype(x.dtype) * self.scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float

    def __post_init__(self):
        check_number("RoPE factor", self.factor, above=0)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:  # [H / 2]
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """LLaMA 3.1: positions of long wavelengths divided by `factor`, those of short ones kept.

    Wavelengths from original_length / high_frequency_factor to original_length /
    low_frequency_factor are interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def __post_init__(self):
        check_number("RoPE factor", self.factor, above=0)
        check_number("RoPE low_frequency_factor", self.low_frequency_factor, above=0)
        check_number(
            "RoPE high_frequency_factor",
            self.high_frequency_factor,
            above=self.low_frequency_factor,
        )
        check_number("RoPE original_length", self.original_length, at_least=1)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:  # [H / 2]
        turns = self.original_length * frequencies / (2 * np.pi)
        ramp = (turns - self.low_frequency_factor) / (
            self.high_frequency_factor - self.low_frequency_factor
        )
        kept = np.clip(ramp, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


RopeScaling = LinearRopeScaling | Llama3RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of the head_dim / 2 pairs (Su et al. 2021), float32 [H / 2]."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    return np.asarray(scaling(frequencies) if scaling else frequencies, np.float32)


def rope_angles(
    positions: jax.Array,  # int32 [B, T], below `length`
    frequencies: np.ndarray,  # [H / 2]
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Sines and cosines of the rotary angles, float32 [B, T, 1, H / 2].

    They are looked up in a table, because XLA on a CPU would compute the sines again in every
    layer, forward and backward. A position outside of the table gives NaN.
    """
    angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
    return tuple(
        jnp.asarray(table).at[positions].get(mode="fill", fill_value=jnp.nan)
        for table in (np.sin(angles), np.cos(angles))
    )


def rope(
    x: jax.Array,  # [B, T, N, H]
    angles: tuple[jax.Array, jax.Array],  # 2 x float32 [B, T, 1, H / 2]
) -> jax.Array:
    """Rotates the pair (i, i + H / 2) of each head by its angle, as in Hugging Face's layout.

    `angles` are those of `rope_angles`; the result is [B, T, N, H].
    """
    sin, cos = (a.astype(x.dtype) for a in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
