"""Self-attention among the frames of one recording, of which a row may hold several.

Shapes: B batch, T frames that attend, S frames attended to, N heads, H head size. Recordings stand
one after the other; `segments` number them, and frames of padding share a number too.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# On a CPU so many frames attend at a time, to as many eighths of all as their segment needs, and in
# as many heads as have so many keys: the scores of more would leave a core's cache.
BLOCK, PARTS, HEADS, KEYS = 126, 8, 4, 4000

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
        return attend_by_segment(q, k, v, segments, key_segments)
    return attend_masked(q, k, v, segments, key_segments)


def attend_masked(q, k, v, segments, key_segments):
    mask = segments[:, None, :, None] == key_segments[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


@jax.custom_vjp
def attend_by_segment(q, k, v, segments, key_segments):
    """The same, for CPUs: a few heads at a time and segment by segment, to its own keys only.

    Gradients are the masked one's, which are faster than those of so many blocks.
    """
    steps, width = q.shape[1], q.shape[3]
    # Segments are of any size, programs are not.
    part = -(-k.shape[1] // PARTS)
    sizes = [min(i * part, k.shape[1]) for i in range(1, PARTS + 1)]
    at_once = min(HEADS, -(-KEYS // k.shape[1]))

    def attend_row(row):
        q, k, v, segments, key_segments = row  # TNH, SNH, SNH, T, S
        q = jnp.pad(q * width**-0.5, ((0, BLOCK), (0, 0), (0, 0)))

        def attend_head(head):
            q, k, v = head  # HT', SH, HS

            def attend_segment(carry):
                start, y = carry
                first, keys = _reach(key_segments, segments[start])
                attend_to = [functools.partial(_attend_to, size) for size in sizes]
                end = start + _reach(segments, segments[start])[1]
                branch = jnp.maximum(keys - 1, 0) // part
                return end, lax.switch(branch, attend_to, q, k, v, start, end, first, keys, y)

            y = jnp.zeros(q.shape, jnp.float32)
            return lax.while_loop(lambda carry: carry[0] < steps, attend_segment, (0, y))[1]

        heads = q.transpose(1, 2, 0), k.swapaxes(0, 1), v.transpose(1, 2, 0)
        y = lax.map(attend_head, heads, batch_size=at_once)
        return y[:, :, :steps].transpose(2, 0, 1)  # NHT -> TNH

    return lax.map(attend_row, (q, k, v, segments, key_segments))


def _masked_for_gradients(q, k, v, segments, key_segments):
    return jax.vjp(lambda *qkv: attend_masked(*qkv, segments, key_segments), q, k, v)


attend_by_segment.defvjp(_masked_for_gradients, lambda vjp, y: (*vjp(y), None, None))


def _reach(segments, segment):
    """Where a segment begins among [T], and how many frames it has."""
    first = jnp.argmax(segments == segment)
    return first, len(segments) - jnp.argmax(segments[::-1] == segment) - first


def _attend_to(size, q, k, v, start, end, first, keys, y):
    """y [H, T'] with what q [H, T'] from start to end hears of so many keys from `first` on.

    They are among `size` of k [S, H] and v [H, S].
    """
    # Where these would reach beyond the end, they begin before `first`.
    begin = jnp.minimum(first, k.shape[0] - size)
    number = begin + jnp.arange(size) - first
    hidden = ((number < 0) | (number >= keys))[:, None]
    k = lax.dynamic_slice_in_dim(k, begin, size)
    v = lax.dynamic_slice_in_dim(v, begin, size, axis=1)

    def attend_block(i, y):
        block = lax.dynamic_slice_in_dim(q, start + i * BLOCK, BLOCK, axis=1)
        scores = jnp.where(hidden, -1e30, _einsum("SH,HT->ST", k, block))
        weights = jnp.exp(scores - scores.max(0)).astype(v.dtype)
        # To divide the sums is one pass less over [S, T] than to divide the weights.
        heard = _einsum("HS,ST->HT", v, weights) / weights.sum(0, dtype=jnp.float32)
        # What a last block writes beyond the end, the next segment overwrites.
        return lax.dynamic_update_slice_in_dim(y, heard, start + i * BLOCK, axis=1)

    return lax.fori_loop(0, -(-(end - start) // BLOCK), attend_block, y)


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
