"""Self-attention in blocks that stay in a core's cache, for inference on CPUs.

Shapes: B batch, T frames that attend (queries), S frames attended to (keys), N heads, H head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from speechgpt_jax.speech.encoder.attention import float32_einsum

# Queries of a block: its scores, for all keys, stay in a core's cache.
BLOCK_QUERIES = 126
# Number of lengths of key slices that are compiled.
KEY_RANGES = 8
# Most heads at a time; fewer if there are many keys, so that heads times keys stays near KEYS_ROOM,
# which fits a core's cache.
MAX_HEADS, KEYS_ROOM = 4, 4000


def attend_by_segment(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, N, H]
    v: jax.Array,  # [B, S, N, H]
    segments: jax.Array,  # [B, T]
    key_segments: jax.Array,  # [B, S]
) -> jax.Array:
    """Same as `encoder.attention.attend_masked`, [B, T, N, H], faster on a CPU; no gradients.

    Computes a few heads at a time and segment by segment, over the keys of that segment only.
    """
    num_queries, num_keys, width = q.shape[1], k.shape[1], q.shape[3]
    # A segment may have any number of keys; one program is compiled for each of KEY_RANGES sizes.
    step = -(-num_keys // KEY_RANGES)
    sizes = [min(i * step, num_keys) for i in range(1, KEY_RANGES + 1)]
    heads_at_once = min(MAX_HEADS, -(-KEYS_ROOM // num_keys))

    def attend_row(row):
        q, k, v, segments, key_segments = row  # TNH, SNH, SNH, T, S
        q = jnp.pad(q * width**-0.5, ((0, BLOCK_QUERIES), (0, 0), (0, 0)))

        def attend_head(head):
            q, k, v = head  # HT', SH, HS

            def attend_segment(carry):
                start, y = carry
                first_key, count = _extent(key_segments, segments[start])
                end = start + _extent(segments, segments[start])[1]
                branches = [functools.partial(_attend_segment, size) for size in sizes]
                branch = jnp.maximum(count - 1, 0) // step
                y = lax.switch(branch, branches, q, k, v, start, end, first_key, count, y)
                return end, y

            y = jnp.zeros(q.shape, jnp.float32)
            return lax.while_loop(lambda carry: carry[0] < num_queries, attend_segment, (0, y))[1]

        heads = q.transpose(1, 2, 0), k.swapaxes(0, 1), v.transpose(1, 2, 0)
        y = lax.map(attend_head, heads, batch_size=heads_at_once)
        return y[:, :, :num_queries].transpose(2, 0, 1)  # NHT -> TNH

    return lax.map(attend_row, (q, k, v, segments, key_segments))


def _extent(segments: jax.Array, segment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First frame of a segment in segments [T], and its number of frames."""
    first = jnp.argmax(segments == segment)
    return first, len(segments) - jnp.argmax(segments[::-1] == segment) - first


def _attend_segment(
    size: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    end: jax.Array,
    first_key: jax.Array,
    count: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """Queries q [H, T'] from `start` to `end` over `count` keys from `first_key` on.

    The keys lie within a slice of `size` of k [S, H] and v [H, S]. Returns y [H, T'] with the
    result written from `start` to `end`.
    """
    # A slice that would end beyond the last key begins before `first_key`.
    begin = jnp.minimum(first_key, k.shape[0] - size)
    number = begin + jnp.arange(size) - first_key
    outside = ((number < 0) | (number >= count))[:, None]
    k = lax.dynamic_slice_in_dim(k, begin, size)
    v = lax.dynamic_slice_in_dim(v, begin, size, axis=1)

    def attend_block(i, y):
        block = lax.dynamic_slice_in_dim(q, start + i * BLOCK_QUERIES, BLOCK_QUERIES, axis=1)
        scores = jnp.where(outside, -1e30, float32_einsum("SH,HT->ST", k, block))
        weights = jnp.exp(scores - scores.max(0)).astype(v.dtype)
        # Dividing the sums is one pass less over [S, T] than dividing the weights.
        out = float32_einsum("HS,ST->HT", v, weights) / weights.sum(0, dtype=jnp.float32)
        # The next segment overwrites what the last block writes beyond `end`.
        return lax.dynamic_update_slice_in_dim(y, out, start + i * BLOCK_QUERIES, axis=1)

    return lax.fori_loop(0, -(-(end - start) // BLOCK_QUERIES), attend_block, y)
