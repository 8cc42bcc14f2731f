"""Layers of the language model: Dense with LoRA, RMSNorm, rotary positions, attention.

Parameters carry logical axis names (`embed`, `heads`, ...) as `out_sharding` metadata. The names
only describe; `sharding` decides which mesh axis each of them lies on.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import spmd
from jax.sharding import PartitionSpec

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

normal_init = nnx.initializers.truncated_normal(stddev=0.02)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): y = x W + alpha / rank * dropout(x) A B.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: share of the adapter's inputs set to zero while training.
      targets: names of the projections that get an adapter.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self):
        check_number("LoRA rank", self.rank, at_least=1)
        check_number("LoRA alpha", self.alpha, above=0)
        check_number("LoRA dropout", self.dropout, at_least=0, below=1)
        if unknown := set(self.targets) - set(PROJECTIONS):
            raise UserError(
                f"Unknown LoRA targets {sorted(unknown)}; choose from {', '.join(PROJECTIONS)}."
            )
        # Gin gives lists, and a config must be hashable.
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self):
        return self.alpha / self.rank


def parameter(value, axes, kind=nnx.Param):
    """A parameter with one logical axis name (or None) a dimension."""
    # Eager sharding would demand a mesh even for a chat on a laptop.
    return kind(value, out_sharding=axes, eager_sharding=False)


def constrain(x, axes):
    """`x` laid over the mesh by its logical axes; outside of `nnx.logical_axis_rules` just `x`."""
    if not spmd.get_logical_axis_rules():
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(axes))


def logical_spec(axes):
    """Where the rules in use lay an array with these logical axes; nowhere without rules."""
    rules = dict(spmd.get_logical_axis_rules())
    return PartitionSpec(*map(rules.get, axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x, kernel, axes, dtype=None):  # [..., D], [D, F] -> [..., F]
    """`x @ kernel`, in `dtype` if given, whose weight gradient is quick and travels light.

    `axes` are the kernel's logical axes.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _matmul_forward(x, kernel, axes, dtype):
    return matmul(x, kernel, axes, dtype), (x, kernel)


def _matmul_backward(axes, dtype, residuals, grad):
    del dtype
    x, kernel = residuals
    grad = grad.astype(x.dtype)
    return grad @ kernel.T, _weight_gradient(x, grad, axes)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _weight_gradient(x, grad, axes):  # [..., D], [..., F] -> [D, F]
    """x^T grad, summed over the devices' rows in such a way that each gets its own piece only.

    Left to XLA, every device would get the whole sum, which is twice the traffic.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    (embed,) = logical_spec(("embed",))
    if sizes.get(embed, 1) == 1 or "embed" not in axes:
        return _contract_rows(x, grad)
    (batch,) = logical_spec(("batch",))
    rows = [batch] + [None] * (x.ndim - 2)
    inputs, outputs = logical_spec(_without_embed(axes))
    scatter = axes.index("embed")

    def summed(x, grad):
        # Pieces of rows lie better in a TPU's memory than pieces of columns.
        pair = (x, grad) if scatter == 0 else (grad, x)
        piece = reduce_scatter(_contract_rows(*pair), embed, sizes[embed])
        piece = jax.lax.psum(piece, [axis for axis in batch if axis != embed])
        return piece if scatter == 0 else piece.T

    return jax.shard_map(
        summed,
        in_specs=(PartitionSpec(*rows, inputs), PartitionSpec(*rows, outputs)),
        out_specs=logical_spec(axes),
        check_vma=False,
    )(x, grad)


def _contract_rows(x, grad):  # [..., D], [..., F] -> [D, F]
    x_transposed = x.reshape(-1, x.shape[-1]).T
    # XLA's CPU backend is slow at contracting the leading axes of both sides; with x^T in memory it
    # runs a plain matrix product. Accelerators read a transposed operand for nothing.
    x_transposed = jax.lax.platform_dependent(
        x_transposed, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )
    return x_transposed @ grad.reshape(-1, grad.shape[-1])


def reduce_scatter(x, axis, size):
    """The sum of x [D, F] over a mesh axis of `size` devices, of which each keeps D / size rows.

    It goes over one dimension of the torus after the other, as TPUs have no reduce-scatter over two
    at once: 256 devices are 16 rings of 16, first across them and then along each.
    """
    rings = math.isqrt(size)
    while size % rings:
        rings -= 1
    ring = size // rings
    across = [list(range(i, size, ring)) for i in range(ring)]
    along = [list(range(i * ring, (i + 1) * ring)) for i in range(rings)]
    for groups in (across, along):
        x = jax.lax.psum_scatter(x, axis, axis_index_groups=groups, tiled=True)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(kernel, axes):
    """`kernel`, laid by its logical axes, as it is used: gathered once for many products.

    Its gradient, a sum of theirs, stays in the pieces that they give.
    """
    return constrain(kernel, _without_embed(axes))


def _gather_forward(kernel, axes):
    return gather(kernel, axes), None


def _gather_backward(axes, _, grad):
    return (constrain(grad, axes),)


gather.defvjp(_gather_forward, _gather_backward)


def _without_embed(axes):
    # In use, activations and kernels are whole along `embed`.
    return [None if axis == "embed" else axis for axis in axes]


class Dense(nnx.Module):
    """A linear layer without bias, [..., in_features] -> [..., out_features], and its adapter.

    The kernel is held in float32, or in int8 with one scale an output, and used in the dtype of the
    input. `lora_b` starts at zero, so a fresh adapter changes nothing.
    """

    def __init__(self, in_features, out_features, axes, *, lora: LoraConfig | None, rngs: nnx.Rngs):
        in_axis, out_axis = axes
        self.axes = axes
        self.lora = lora
        self.kernel = parameter(normal_init(rngs.params(), (in_features, out_features)), axes)
        self.kernel_scale = nnx.data(None)
        if lora:
            bound = in_features**-0.5
            a = jax.random.uniform(
                rngs.params(), (in_features, lora.rank), minval=-bound, maxval=bound
            )
            self.lora_a = parameter(a, (in_axis, "rank"), nnx.LoRAParam)
            self.lora_b = parameter(
                jnp.zeros((lora.rank, out_features)), ("rank", out_axis), nnx.LoRAParam
            )

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        """With `rngs` (stream `dropout`) the adapter's input is dropped out, without it is not."""
        y = matmul(x, self.kernel.astype(x.dtype), self.axes)
        if self.kernel_scale is not None:
            y = y * self.kernel_scale.astype(x.dtype)
        return y + self._adapter(x, self.lora, rngs) if self.lora else y

    def _adapter(self, x, lora, rngs):
        if rngs is not None and lora.dropout > 0:
            keep = jax.random.bernoulli(rngs.dropout(), 1 - lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - lora.dropout), 0)
        low_rank = matmul(x, self.lora_a.astype(x.dtype), (self.axes[0], "rank"))
        adapted = matmul(low_rank, self.lora_b.astype(x.dtype), ("rank", self.axes[1]))
        return adapted * lora.scale

    def quantize(self):
        """Rounds the kernel to int8, each output by its largest weight; stacked layers too."""
        import qwix  # Takes a second, and only a frozen base needs it.

        inputs, outputs = self.kernel.ndim - 2, self.kernel.ndim - 1
        axes = list(self.kernel.get_metadata("out_sharding"))
        quantized = qwix.quantize(
            self.kernel[...], "int8", channelwise_axes=(*range(inputs), outputs)
        )
        self.kernel = parameter(quantized.qvalue, tuple(axes))
        axes[inputs] = None
        self.kernel_scale = parameter(quantized.scale, tuple(axes))

    def merge_adapter(self):
        """Adds the adapter to the kernel: the same function, one product instead of three."""
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

    def __init__(self, features, epsilon):
        self.epsilon = epsilon
        self.scale = parameter(jnp.ones(features), (None,))

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse_rms).astype(x.dtype) * self.scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float

    def __call__(self, frequencies):
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """LLaMA 3.1: positions of long wavelengths divided by `factor`, short ones kept."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def __call__(self, frequencies):
        turns = self.original_length * frequencies / (2 * np.pi)
        ramp = (turns - self.low_frequency_factor) / (
            self.high_frequency_factor - self.low_frequency_factor
        )
        kept = np.clip(ramp, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


def rope_frequencies(head_dim, theta, scaling=None):
    """Radians a position for each of the head_dim / 2 pairs (Su et al. 2021), float32 [H / 2]."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    return np.float32(scaling(frequencies) if scaling else frequencies)


def rope_angles(positions, frequencies, length):
    """Positions [B, T], below `length`, -> sines and cosines, float32 [B, T, 1, H / 2].

    They are looked up: a CPU would take the sines anew in every layer, forward and backward.
    """
    angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
    return tuple(
        jnp.asarray(table).at[positions].get(mode="fill", fill_value=jnp.nan)
        for table in (np.sin(angles), np.cos(angles))
    )


def rope(x, angles):  # [B, T, N, H]
    """Rotates the pair (i, i + H / 2) of each head by its angle: the layout of Hugging Face."""
    sin, cos = (a.astype(x.dtype) for a in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def cached_attention(query, keys, values, mask):  # [B, T, N, H], 2 x [B K, S, H], [B, T, S]
    """Attention of the next tokens to a cache, [B, T, N, H]."""
    batch, length, _, head_dim = query.shape
    # [B, T, K G, H] -> [B K, G T, H]: one matrix product a key head, with the cache as it lies.
    grouped = query.reshape(batch, length, len(keys) // batch, -1, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(len(keys), -1, head_dim)
    scores = jnp.einsum("ath,ash->ats", flat, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*grouped.shape[:4], -1) * head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
    weights = weights.reshape(*flat.shape[:2], -1).astype(query.dtype)
    heads = jnp.einsum("ats,ash->ath", weights, values).reshape(grouped.shape)
    return heads.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def write_cache(cached, new, slot):  # [B K, S, H], [B, T, K, H], []
    """The cache with the next tokens' keys (or values) from `slot` on."""
    new = new.swapaxes(1, 2).reshape(len(cached), new.shape[1], new.shape[3])
    return jax.lax.dynamic_update_slice_in_dim(cached, new, slot, axis=1)
