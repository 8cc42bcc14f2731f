"""KV cache: the keys and values of earlier tokens, so that decoding computes only the new ones.

Token i of a row is at index i of the row's cache, whatever the other rows hold: what is computed
for a row then doesn't depend on the others, down to the last bit.
"""

import dataclasses

import jax
import jax.numpy as jnp

from speechgpt_jax.models.attention import target_platform
from speechgpt_jax.models.collectives import constrain

CACHE_AXES = ("batch", "kv_heads", None, "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
      keys: one array [B, K, S, H] per layer; what follows a row's tokens is undefined but finite.
      values: one array [B, K, S, H] per layer.
      lengths: number of tokens of each row, int32 [B].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def size(self) -> int:
        """Number of tokens for which a row has room, S."""
        return self.keys[0].shape[2]


def write_cache(
    cached: jax.Array,  # [B, K, S, H]
    new: jax.Array,  # [B, T, K, H]
    first: jax.Array,  # int32 [B]
) -> jax.Array:
    """Writes each row's next keys (or values) from its index `first` on, [B, K, S, H]."""
    new = new.swapaxes(1, 2)
    if target_platform() == "cpu":
        # XLA's CPU backend would turn the scatter into a loop, which takes longer.
        for row in range(len(new)):
            cached = jax.lax.dynamic_update_slice(
                cached, new[row : row + 1], (row, 0, first[row], 0)
            )
    else:
        write_row = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
        cached = write_row(cached, new, first, 1)
    return constrain(cached, CACHE_AXES)


def cached_attention(
    query: jax.Array,  # [B, T, N, H]
    keys: jax.Array,  # [B, K, S, H]
    values: jax.Array,  # [B, K, S, H]
    mask: jax.Array,  # bool [B, T, S]
) -> jax.Array:
    """Attention of the next tokens to the cache, [B, T, N, H]."""
    batch, length, _, head_dim = query.shape
    # [B, T, K G, H] -> [B, K, G T, H]: one matrix product per key head, with the cache as it is.
    grouped = query.reshape(batch, length, keys.shape[1], -1, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(*grouped.shape[:2], -1, head_dim)
    scores = jnp.einsum("bkth,bksh->bkts", flat, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*grouped.shape[:4], -1) * head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
    weights = weights.reshape(*flat.shape[:3], -1).astype(query.dtype)
    heads = jnp.einsum("bkts,bksh->bkth", weights, values).reshape(grouped.shape)
    return heads.transpose(0, 3, 1, 2, 4).reshape(query.shape)
