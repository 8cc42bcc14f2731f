"""Self-attention among the frames of one recording, of which a row may hold several.

Shapes: B batch, T frames that attend, S frames attended to, N heads, H head size. Recordings stand
one after the other; `segments` number them, and frames of padding share a number too.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# On a CPU so many frames attend at a time, to as many quarters of all as they need.
BLOCK, PARTS = 250, 4

# Sums are float32, whatever is multiplied.
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(q, k, v, segments, key_segments, near: int | None) -> jax.Array:
    """q [B, T, N, H], k and v [B, S, N, H], segments [B, T] and [B, S] -> [B, T, N, H].

    Frames attend to those of their own segment or, if `near` is given, to those of them that are at
    most so many frames away; q, k and v then are of the same frames.
    """
    if near is not None:
        return attend_near(q, k, v, segments, near)
    if jax.default_backend() == "cpu":
        return attend_in_blocks(q, k, v, segments, key_segments)
    return attend_masked(q, k, v, segments, key_segments)


def attend_masked(q, k, v, segments, key_segments):
    mask = segments[:, None, :, None] == key_segments[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def attend_in_blocks(q, k, v, segments, key_segments):
    """The same, for CPUs: head by head, each block to no more keys than reach over its segments.

    XLA's batched products of this layout are 2.5 times slower on a CPU than these.
    """
    steps = q.shape[1]
    count = -(-steps // BLOCK)
    size = -(-steps // count)
    padding = ((0, 0), (0, count * size - steps))
    q = jnp.pad(q * q.shape[-1] ** -0.5, (*padding, (0, 0), (0, 0)))
    segments = jnp.pad(segments, padding, "edge")

    def attend_row(row):
        q, k, v, segments, key_segments = row  # TNH, SNH, SNH, T, S
        k, v = (jnp.moveaxis(x, 1, 0) for x in (k, v))

        def attend_block(block):
            q, segments = block  # T'NH, T'
            first = jnp.argmax(key_segments == segments[0])
            last = len(key_segments) - jnp.argmax(key_segments[::-1] == segments[-1])
            part = -(-len(key_segments) // PARTS)
            branches = [
                functools.partial(_attend_to, min(i * part, len(key_segments)))
                for i in range(1, PARTS + 1)
            ]
            branch = jnp.maximum(last - first - 1, 0) // part
            return lax.switch(
                branch, branches, jnp.moveaxis(q, 1, 0), k, v, segments, key_segments, first
            )

        blocks = (q.reshape(count, size, *q.shape[1:]), segments.reshape(count, size))
        return lax.map(attend_block, blocks).reshape(q.shape)

    return lax.map(attend_row, (q, k, v, segments, key_segments))[:, :steps]


def _attend_to(size, q, k, v, segments, key_segments, first):
    """To `size` keys from `first` on: q [N, T, H], k and v [N, S, H] -> [T, N, H]."""
    # Where the slice would reach beyond the end, it begins before `first`.
    key_segments = lax.dynamic_slice_in_dim(key_segments, first, size)
    hidden = segments[:, None] != key_segments

    def attend_head(head):
        keys, values = (
            lax.dynamic_slice(x, (head, first, 0), (1, size, x.shape[2]))[0] for x in (k, v)
        )
        scores = jnp.where(hidden, -1e30, _einsum("TH,SH->TS", q[head], keys))
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(v.dtype)
        # To divide the sums is one pass less over [T, S] than to divide the weights.
        sums = _einsum("TS,SH->TH", weights, values)
        return sums / weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)

    return jnp.moveaxis(lax.map(attend_head, jnp.arange(len(q))), 0, 1)


def attend_near(q, k, v, segments, near: int):
    """Blocks of 2 * `near` frames attend to themselves and to `near` frames on either side."""
    batch, steps, heads, width = q.shape
    count = -(-steps // (2 * near))
    after = count * 2 * near - steps

    def blocks(x):  # BT... -> B, count, 2 near, ...
        x = jnp.pad(x, [(0, 0), (0, after), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(batch, count, 2 * near, *x.shape[2:])

    def windows(x):  # BT... -> B, count, 4 near, ...
        x = jnp.pad(x, [(0, 0), (near, near + after), *[(0, 0)] * (x.ndim - 2)])
        halves = x.reshape(batch, 2 * count + 2, near, *x.shape[2:])
        return jnp.concatenate([halves[:, i : i + 2 * count : 2] for i in range(4)], axis=2)

    # No segment has the number that stands for no frame.
    own, other = blocks(segments + 1), windows(segments + 1)
    distance = jnp.arange(2 * near)[:, None] + near - jnp.arange(4 * near)
    seen = (own[..., None] == other[:, :, None]) & (abs(distance) <= near)
    scores = _einsum("BCTNH,BCSNH->BCNTS", blocks(q) * width**-0.5, windows(k))
    weights = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -1e30), axis=-1)
    y = _einsum("BCNTS,BCSNH->BCTNH", weights.astype(v.dtype), windows(v))
    return y.reshape(batch, -1, heads, width)[:, :steps]
