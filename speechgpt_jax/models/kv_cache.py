"""KV cache: the keys and values of earlier tokens, so that decoding computes only the new ones.

Token i of a row is at index i of the row's cache, whatever the other rows hold: what is computed
for a row then doesn't depend on the others, down to the last bit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from speechgpt_jax.models.collectives import constrain, float32_einsum, target_platform

CACHE_AXES = ("batch", "kv_heads", None, "head_dim")

# Keys that a CPU reads at once.
CPU_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
      keys: one array [B, K, S, H] per layer; what follows a row's tokens is undefined but finite.
        In a loop of decoding on a CPU it is [B K, S, H], see `merged`.
      values: arrays of the same shape.
      lengths: number of tokens of each row, int32 [B].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def size(self) -> int:
        """Number of tokens for which a row has room, S."""
        return self.keys[0].shape[-2]

    def merged(self) -> "KVCache":
        """The cache with one axis for rows and heads, [B K, S, H].

        XLA's CPU backend multiplies matrices with one such axis, and writes a token in place only
        into an array that it multiplies as it is. Else it copies a cache four times per token.
        """
        return self._reshaped(-1, *self.keys[0].shape[-2:])

    def split(self) -> "KVCache":
        """The cache with an axis for rows and one for heads, [B, K, S, H]."""
        return self._reshaped(len(self.lengths), -1, *self.keys[0].shape[-2:])

    def _reshaped(self, *shape: int) -> "KVCache":
        keys, values = (
            tuple(array.reshape(shape) for array in arrays) for arrays in (self.keys, self.values)
        )
        return KVCache(keys, values, self.lengths)


def write_cache(
    cached: jax.Array,  # [R, K, S, H] or [R K, S, H]
    new: jax.Array,  # [B, T, K, H]
    first: jax.Array,  # int32 [B]
    row: jax.Array | None = None,  # int32 []
) -> jax.Array:
    """Writes each row's next keys (or values) from its index `first` on, in the shape of `cached`.

    `new` belongs to all rows (B = R), or to one `row` (B = 1).
    """
    if target_platform() != "cpu" and new.shape[1] == 1 and row is None:
        # One kernel for all rows; TPUs would update one slice after the other. Each head has an
        # index of its own: windows of all heads would give the cache another layout, by a copy.
        rows, heads = jnp.ogrid[: new.shape[0], : new.shape[2]]
        cached = cached.at[rows, heads, first[:, None]].set(new[:, 0])
    else:
        # XLA's CPU backend would make a slow loop of a scatter, and TPUs would copy the cache for
        # slices of several tokens.
        new = new.swapaxes(1, 2)
        for i in range(len(new)):
            if cached.ndim == 3:
                update, start = new[i], (i * new.shape[1], first[i], 0)
            else:
                update, start = new[i : i + 1], (i if row is None else row, 0, first[i], 0)
            cached = jax.lax.dynamic_update_slice(cached, update, start)
    return constrain(cached, CACHE_AXES) if cached.ndim == 4 else cached


def cached_attention(
    query: jax.Array,  # [B, T, N, H]
    keys: jax.Array,  # [R, K, S, H] or [R K, S, H]
    values: jax.Array,  # of the same shape
    positions: jax.Array,  # int32 [B, T]
    row: jax.Array | None = None,  # int32 []
) -> jax.Array:
    """Attention of the next tokens to the cache up to their own positions, [B, T, N, H].

    The tokens are those of all rows, B = R, or of one `row`, B = 1.

    On a CPU the cache is read in blocks of keys, whose sums are added one by one (Milakov and
    Gimelshein 2018). Blocks that a row doesn't see add nothing to its sums, not even rounding, so
    only the first S, S/2, S/4, ... keys are read: the fewest that cover all positions of the batch.
    """
    batch, length, _, head_dim = query.shape
    kv_heads = keys.shape[1] if keys.ndim == 4 else len(keys) // batch
    # [B, T, K G, H] -> [B, K, G T, H]: one matrix product per key head, with the cache as it is.
    grouped = query.reshape(batch, length, kv_heads, -1, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(*grouped.shape[:2], -1, head_dim) * head_dim**-0.5
    last = jnp.tile(positions, grouped.shape[2])[:, None, :, None]  # [B, 1, G T, 1]
    if keys.ndim == 3:
        last = jnp.broadcast_to(last, (*flat.shape[:3], 1)).reshape(len(keys), -1, 1)
        flat = flat.reshape(len(keys), -1, head_dim)
    size = keys.shape[-2]
    block = CPU_BLOCK if target_platform() == "cpu" and size % CPU_BLOCK == 0 else size
    sizes = _prefix_sizes(size, block)
    num_halvings = jnp.sum(jnp.array(sizes[1:], int) > jnp.max(positions))
    attend = functools.partial(_attend_to_prefix, flat, keys, values, last, row, block=block)
    heads = jax.lax.switch(num_halvings, [functools.partial(attend, read=read) for read in sizes])
    heads = heads.astype(query.dtype).reshape(grouped.shape)
    return heads.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _prefix_sizes(size: int, block: int) -> list[int]:
    """[S, S/2, S/4, ...], as long as they are multiples of `block`."""
    sizes = [size]
    while sizes[-1] % (2 * block) == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def _attend_to_prefix(
    query: jax.Array,  # [B, K, G T, H] or [B K, G T, H], scaled
    keys: jax.Array,  # [R, K, S, H] or [R K, S, H]
    values: jax.Array,  # of the same shape
    last: jax.Array,  # int32 [B, 1, G T, 1] or [B K, G T, 1]
    row: jax.Array | None,  # int32 []
    *,
    block: int,
    read: int,
) -> jax.Array:
    """Attention to the first `read` keys, up to index `last`: float32, in the shape of `query`."""

    def blocks(cached: jax.Array) -> jax.Array:  # [R, K, S, H] -> [B, K, blocks, block, H]
        # For a single row, only the keys that are read are copied.
        start = (0 if row is None else row, *[0] * (cached.ndim - 1))
        *rows_and_heads, _, head_dim = query.shape
        cut = jax.lax.dynamic_slice(cached, start, (*rows_and_heads, read, head_dim))
        return cut.reshape(*rows_and_heads, read // block, block, head_dim)

    # Exponentials are computed block by block: their rounding depends on an array's shape.
    def weigh(maximum, block_inputs):
        scores, first = block_inputs
        scores = jnp.where(first + jnp.arange(block) <= last, scores, -1e9)
        new_maximum = jnp.maximum(maximum, scores.max(axis=-1, keepdims=True))
        weights, scale = jnp.exp(scores - new_maximum), jnp.exp(maximum - new_maximum)
        return new_maximum, (weights, scale, weights.sum(axis=-1, keepdims=True))

    def add(carry, block_inputs):
        total, heads = carry
        scale, new_total, new_heads = block_inputs
        return (total * scale + new_total, heads * scale + new_heads), None

    scores = float32_einsum("...th,...nsh->...nts", query, blocks(keys))
    zeros = jnp.zeros((*query.shape[:-1], 1))
    blockwise = jnp.moveaxis(scores, -3, 0), jnp.arange(0, read, block)
    _, (weights, scales, sums) = jax.lax.scan(weigh, zeros - 1e9, blockwise)
    weights = jnp.moveaxis(weights, 0, -3).astype(query.dtype)
    means = float32_einsum("...nts,...nsh->...nth", weights, blocks(values))
    blockwise = scales, sums, jnp.moveaxis(means, -3, 0)
    (total, heads), _ = jax.lax.scan(add, (zeros, jnp.zeros(query.shape)), blockwise)
    return heads / total
