"""Causal attention within segments, with one implementation per platform.

TPUs run splash attention (Pallas), NVIDIA GPUs cuDNN's fused attention if the dtype has 16 bits,
and CPUs plain XLA over blocks of queries. They differ only in rounding; the first two never store
scores [B, N, T, T].
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from speechgpt_jax.models.collectives import (
    constrain,
    float32_einsum,
    logical_spec,
    shard_count,
    target_platform,
)

# Splash attention: rows are padded to a multiple of LANES; BLOCK is the largest block of queries
# and of keys.
LANES = 128
BLOCK = 512
# Queries per block on a CPU; a block attends to the keys up to its last query.
CPU_BLOCK = 128


def attention(
    query: jax.Array,  # [B, T, N, H]
    key: jax.Array,  # [B, T, K, H]
    value: jax.Array,  # [B, T, K, H]
    segment_ids: jax.Array | None,  # int32 [B, T]; None: one segment
) -> jax.Array:
    """Causal attention within each segment, [B, T, N, H].

    Each device attends with its own heads (`llama.check_mesh` ensures that they divide equally).
    Where the rows of a batch are sharded along their length, the devices exchange parts of the rows
    for heads, attend to whole rows, and exchange them back.
    """
    # Each device needs a key head: if there are fewer, they are repeated.
    shards = shard_count("attention_heads")
    repeats = shards // math.gcd(key.shape[2], shards)
    if repeats > 1:
        key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    if shard_count("length") == 1:
        return _whole_rows(query, key, value, segment_ids)
    query, key, value = (
        constrain(x, ("batch", None, "attention_heads", None)) for x in (query, key, value)
    )
    if segment_ids is not None:
        segment_ids = constrain(segment_ids, ("batch", None))
    heads = _whole_rows(query, key, value, segment_ids)
    return constrain(heads, ("batch", "length", "heads", None))


def _whole_rows(query, key, value, segment_ids):
    platform = target_platform()
    if platform == "tpu":
        return splash_attention(query, key, value, segment_ids)
    if platform == "cpu":
        return blockwise_attention(query, key, value, segment_ids)
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    # cuDNN fuses 16-bit attention only.
    fused = platform == "gpu" and query.dtype.itemsize == 2
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="cudnn" if fused else "xla"
    )


@jax.custom_vjp
def blockwise_attention(
    query: jax.Array,  # [B, T, N, H]
    key: jax.Array,  # [B, T, K, H]
    value: jax.Array,  # [B, T, K, H]
    segment_ids: jax.Array | None,  # int32 [B, T]
) -> jax.Array:
    """`attention` in blocks of queries, with few passes over the scores.

    Scores are stored with keys before queries, [B, K, S, G T], where G = N / K query heads share a
    key head: softmax then handles many queries at once, and the backward pass needs no transposed
    copy. It follows FlashAttention (Dao et al. 2022, appendix B), but stores the weights instead of
    computing them again.
    """
    return _blockwise_forward(query, key, value, segment_ids)[0]


def _blockwise_forward(query, key, value, segment_ids):
    batch, length, _, head_dim = query.shape
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    query = query * head_dim**-0.5
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, S, H]
    positions, heads, blocks = jnp.arange(length), [], []
    for targets, sources in _blocks(length):
        visible = segment_ids[:, sources, None] == segment_ids[:, None, targets]
        visible &= positions[sources, None] <= positions[targets]
        queries = _rows(query[:, targets], key.shape[2])
        visible = jnp.tile(visible[:, None], queries.shape[2] // visible.shape[2])
        scores = float32_einsum("bksh,bkth->bkst", keys[:, :, sources], queries)
        scores = jnp.where(visible, scores, -1e9)
        weights = jnp.exp(scores - scores.max(axis=2, keepdims=True))
        sums = weights.sum(axis=2)[..., None]
        weights = weights.astype(value.dtype)
        mean = float32_einsum("bkst,bksh->bkth", weights, values[:, :, sources]) / sums
        heads.append(_heads(mean, targets))
        blocks.append((queries, weights, sums, mean))
    heads = jnp.concatenate(heads, axis=1).astype(query.dtype)
    return heads, (keys, values, blocks)


def _blockwise_backward(residuals, grad):  # BTNH
    keys, values, blocks = residuals
    d_query: Any = []
    d_keys: Any = 0.0
    d_values: Any = 0.0
    for (targets, sources), block in zip(_blocks(grad.shape[1]), blocks):
        queries, weights, sums, mean = block
        rows = _rows(grad[:, targets], keys.shape[1]) / sums
        shift = jnp.sum(rows * mean, axis=-1)[:, :, None]
        rows = rows.astype(grad.dtype)
        d_weights = float32_einsum("bksh,bkth->bkst", values[:, :, sources], rows)
        d_scores = (weights * (d_weights - shift)).astype(grad.dtype)
        d_query.append(
            _heads(float32_einsum("bkst,bksh->bkth", d_scores, keys[:, :, sources]), targets)
        )
        padding = [(0, 0), (0, 0), (0, keys.shape[2] - sources.stop), (0, 0)]
        d_keys += jnp.pad(float32_einsum("bkst,bkth->bksh", d_scores, queries), padding)
        d_values += jnp.pad(float32_einsum("bkst,bkth->bksh", weights, rows), padding)
    d_query = jnp.concatenate(d_query, axis=1) * grad.shape[-1] ** -0.5
    grads = d_query, d_keys.swapaxes(1, 2), d_values.swapaxes(1, 2)
    return *(x.astype(grad.dtype) for x in grads), None


blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(length):
    """Slices of queries, each with the slice of keys up to its last query."""
    starts = range(0, length, CPU_BLOCK)
    ends = [min(start + CPU_BLOCK, length) for start in starts]
    return [(slice(start, end), slice(end)) for start, end in zip(starts, ends)]


def _rows(x, num_groups):  # [B, T, N, H] -> [B, K, G T, H]
    batch, length, _, head_dim = x.shape
    x = x.reshape(batch, length, num_groups, -1, head_dim).transpose(0, 2, 3, 1, 4)
    return x.reshape(batch, num_groups, -1, head_dim)


def _heads(rows, targets):  # [B, K, G T, H] -> [B, T, N, H]
    batch, num_groups, _, head_dim = rows.shape
    x = rows.reshape(batch, num_groups, -1, targets.stop - targets.start, head_dim)
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, x.shape[3], -1, head_dim)


def splash_attention(
    query: jax.Array,  # [B, T, N, H]
    key: jax.Array,  # [B, T, K, H]
    value: jax.Array,  # [B, T, K, H]
    segment_ids: jax.Array | None,  # int32 [B, T]
    interpret: bool = False,
) -> jax.Array:
    """`attention` by the Pallas kernel for TPUs; with `interpret` it runs anywhere, slowly."""
    batch, length = query.shape[:2]
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    query = query * query.shape[-1] ** -0.5
    # Padding follows the last token, so causal attention ignores it.
    padding = -length % LANES
    heads_first = [_pad(x, padding).swapaxes(1, 2) for x in (query, key, value)]
    attend = functools.partial(_splash, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        heads = logical_spec(("batch", "attention_heads", None, None))
        # XLA can't partition a Pallas kernel: each device calls it on its own rows and heads.
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, logical_spec(("batch", None))),
            out_specs=heads,
            check_vma=False,
        )
    query, key, value = heads_first
    heads = attend(query, key, value, _pad(segment_ids, padding))
    return heads.swapaxes(1, 2)[:, :length]


def _pad(x, padding):
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) if padding else x


def _splash(query, key, value, segment_ids, interpret):  # [B, N, T, H], 2 x [B, K, T, H], [B, T]
    # Only TPUs need it, and importing it takes a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, num_heads, length, _ = query.shape
    block = next(size for size in (BLOCK, 2 * LANES, LANES) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    causal = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
    kernel = splash.make_splash_mha_single_device(causal, block_sizes=sizes, interpret=interpret)
    segments = splash.SegmentIds(segment_ids, segment_ids)
    return jax.vmap(kernel)(query, key, value, segments)
