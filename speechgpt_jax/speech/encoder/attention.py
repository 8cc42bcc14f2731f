"""Self-attention among the frames of one recording; one row may hold several recordings.

Recordings stand one after the other in a row. `segments` number them; frames of padding share a
number too.

Shapes: B batch, T frames that attend (queries), S frames attended to (keys), N heads, H head size,
R frames to either side.
"""

import functools

import jax
import jax.numpy as jnp

# Sums are float32 whatever the type of the factors.
float32_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend_masked(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, N, H]
    v: jax.Array,  # [B, S, N, H]
    segments: jax.Array,  # [B, T]
    key_segments: jax.Array,  # [B, S]
) -> jax.Array:
    """Attention [B, T, N, H] of each frame to all frames of its own segment."""
    mask = segments[:, None, :, None] == key_segments[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def attend_nearby(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, N, H]
    v: jax.Array,  # [B, T, N, H]
    segments: jax.Array,  # [B, T]
    reach: int,
) -> jax.Array:
    """Attention [B, T, N, H] of each frame to those of its segment at most `reach` frames away.

    Blocks of 2 R frames attend to themselves and to the R frames on either side.
    """
    batch, steps, heads, width = q.shape
    count = -(-steps // (2 * reach))
    after = count * 2 * reach - steps

    def blocks(x):  # BT... -> B, count, 2 R, ...
        x = jnp.pad(x, [(0, 0), (0, after), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(batch, count, 2 * reach, *x.shape[2:])

    def windows(x):  # BT... -> B, count, 4 R, ...
        x = jnp.pad(x, [(0, 0), (reach, reach + after), *[(0, 0)] * (x.ndim - 2)])
        halves = x.reshape(batch, 2 * count + 2, reach, *x.shape[2:])
        return jnp.concatenate([halves[:, i : i + 2 * count : 2] for i in range(4)], axis=2)

    # Segments are numbered from 1 here, because padding beyond the ends gets 0.
    own, other = blocks(segments + 1), windows(segments + 1)
    distance = jnp.arange(2 * reach)[:, None] + reach - jnp.arange(4 * reach)
    mask = (own[..., None] == other[:, :, None]) & (abs(distance) <= reach)
    scores = float32_einsum("BCTNH,BCSNH->BCNTS", blocks(q) * width**-0.5, windows(k))
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, -1e30), axis=-1)
    y = float32_einsum("BCNTS,BCSNH->BCTNH", weights.astype(v.dtype), windows(v))
    return y.reshape(batch, -1, heads, width)[:, :steps]
