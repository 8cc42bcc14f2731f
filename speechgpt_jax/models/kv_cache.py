"""KV cache: the keys and values of earlier tokens, so that decoding computes only the new ones.

Rows and key heads share one axis, [B K, ...]: XLA then updates the cache in place and multiplies it
without a copy.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
      keys: one array [B K, S, H] per layer.
      values: one array [B K, S, H] per layer.
      start: index of the first slot of each row that is not padding, int32 [B].
      length: number of slots in use, int32 [].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    start: jax.Array
    length: jax.Array

    @property
    def num_slots(self) -> int:
        """Number of slots per row, S."""
        return self.keys[0].shape[1]


def write_cache(
    cached: jax.Array,  # [B K, S, H]
    new: jax.Array,  # [B, T, K, H]
    slot: jax.Array,  # int32 []
) -> jax.Array:
    """Writes the next tokens' keys (or values) into the cache from `slot` on, [B K, S, H]."""
    new = new.swapaxes(1, 2).reshape(len(cached), new.shape[1], new.shape[3])
    return jax.lax.dynamic_update_slice_in_dim(cached, new, slot, axis=1)


def cached_attention(
    query: jax.Array,  # [B, T, N, H]
    keys: jax.Array,  # [B K, S, H]
    values: jax.Array,  # [B K, S, H]
    mask: jax.Array,  # bool [B, T, S]
) -> jax.Array:
    """Attention of the next tokens to the cache, [B, T, N, H]."""
    batch, length, _, head_dim = query.shape
    # [B, T, K G, H] -> [B K, G T, H]: one matrix product per key head, with the cache as it is.
    grouped = query.reshape(batch, length, len(keys) // batch, -1, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(len(keys), -1, head_dim)
    scores = jnp.einsum("ath,ash->ats", flat, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*grouped.shape[:4], -1) * head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
    weights = weights.reshape(*flat.shape[:2], -1).astype(query.dtype)
    heads = jnp.einsum("ats,ash->ath", weights, values).reshape(grouped.shape)
    return heads.transpose(0, 3, 1, 2, 4).reshape(query.shape)
