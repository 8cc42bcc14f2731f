"""Causal attention within segments, by the kernel of the device at hand.

TPUs run splash attention (Pallas), NVIDIA GPUs cuDNN's fused attention, and CPUs blocks of queries
in plain XLA. All three give the same numbers; the first two never hold scores of [B, N, T, T].
"""

import functools

import jax
import jax.numpy as jnp

from speechgpt_jax.models.layers import logical_spec

# Splash attention reads blocks of queries and keys; lengths are padded to a multiple of the lanes.
LANES = 128
BLOCK = 512
# Queries that a CPU takes at a time, with the keys up to the last of them.
CPU_BLOCK = 128


def attention(query, key, value, segment_ids):  # [B, T, N, H], 2 x [B, T, K, H], [B, T] | None
    """Causal attention within each segment, [B, T, N, H]."""
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


def target_platform():
    """ "tpu", "gpu" or "cpu": that of the mesh in use, which may be of another machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def blockwise_attention(query, key, value, segment_ids):
    """`attention` with few passes over the scores, and none over those of later blocks of keys."""
    batch, length, num_heads, head_dim = query.shape
    num_groups = key.shape[2]
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    query = (query * head_dim**-0.5).reshape(batch, length, num_groups, -1, head_dim)
    query = query.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    # A column of ones makes the sum of the weights a part of their product with the values.
    value = jnp.pad(value, [(0, 0)] * 3 + [(0, 1)], constant_values=1)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, T, H], [B, K, T, H + 1]
    places, heads = jnp.arange(length), []
    for start in range(0, length, CPU_BLOCK):
        now, seen = slice(start, start + CPU_BLOCK), slice(0, start + CPU_BLOCK)
        visible = segment_ids[:, now, None] == segment_ids[:, None, seen]
        visible &= places[now, None] >= places[seen]
        scores = jnp.einsum(
            "bkgth,bksh->bkgts",
            query[..., now, :],
            key[:, :, seen],
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(visible[:, None, None], scores, -1e9)
        highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        sums = jnp.einsum(
            "bkgts,bksh->bkgth",
            jnp.exp(scores - highest).astype(value.dtype),
            value[:, :, seen],
            preferred_element_type=jnp.float32,
        )
        heads.append((sums[..., :-1] / sums[..., -1:]).astype(query.dtype))
    heads = jnp.concatenate(heads, axis=3)
    return heads.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


def splash_attention(query, key, value, segment_ids, interpret=False):
    """`attention` by the Pallas kernel of TPUs; `interpret` runs it anywhere, slowly."""
    batch, length = query.shape[:2]
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    query = query * query.shape[-1] ** -0.5
    # Behind the last token, where causal attention never looks.
    padding = -length % LANES
    heads_first = [_pad(x, padding).swapaxes(1, 2) for x in (query, key, value)]
    attend = functools.partial(_splash, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        queries = logical_spec(("batch", "heads", None, None))
        keys = logical_spec(("batch", "kv_heads", None, None))
        # XLA can't partition a kernel: every device calls it on its own rows and heads.
        attend = jax.shard_map(
            attend,
            in_specs=(queries, keys, keys, logical_spec(("batch", None))),
            out_specs=queries,
            check_vma=False,
        )
    heads = attend(*heads_first, _pad(segment_ids, padding))
    return heads.swapaxes(1, 2)[:, :length]


def _pad(x, padding):
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) if padding else x


def _splash(query, key, value, segment_ids, interpret):  # [B, N, T, H], 2 x [B, K, T, H], [B, T]
    # Only TPUs need it, and importing Pallas takes a second.
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
