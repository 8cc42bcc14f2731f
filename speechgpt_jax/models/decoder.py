"""A LLaMA in the form for generation: layers side by side, adapters merged, weights in one dtype.

decoder = make_decoder(model)
hidden, cache = decoder.decode(tokens, decoder.init_cache(batch=1, size=128))
logits = decoder.unembed(hidden[:, -1])
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from speechgpt_jax.models.collectives import constrain
from speechgpt_jax.models.kv_cache import CACHE_AXES, KVCache
from speechgpt_jax.models.layers import Dense, parameter
from speechgpt_jax.models.llama import OUTPUT_AXES, Block, Llama, rotary_angles, unembed, unstack
from speechgpt_jax.models.llama_config import DType, LlamaConfig


class Decoder(nnx.Module):
    """A `Llama` for generation, without the parts that only training needs."""

    def __init__(self, model: Llama, *, config: LlamaConfig, int8: bool):
        """Copies the weights of `model`; see `make_decoder`."""
        self.config = config
        embedding, kernel = _embedding_and_output(model)
        self.embed_tokens = parameter(embedding, ("vocab", "embed"))
        self.output_kernel = parameter(kernel, OUTPUT_AXES)
        graphdef, stacked = nnx.split(model.layers)
        states = unstack(nnx.map_state(_without_layers_axis, stacked))
        self.blocks = nnx.List(_for_decoding(nnx.merge(graphdef, s), int8) for s in states)
        self.norm = model.norm
        nnx.update(self, jax.tree.map(_cast(config.dtype), nnx.state(self)))

    def init_cache(self, batch: int, size: int) -> KVCache:
        """An empty cache of `batch` rows with room for `size` tokens each."""
        config = self.config
        shape = (batch, config.num_kv_heads, size, config.head_dim)

        def zeros():
            empty = jnp.zeros(shape, config.dtype)
            return tuple(constrain(empty, CACHE_AXES) for _ in range(config.num_layers))

        return KVCache(zeros(), zeros(), jnp.zeros(batch, jnp.int32))

    def decode(
        self, tokens: jax.Array, cache: KVCache, row: jax.Array | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states of the next tokens, given the cache of the earlier ones.

        Args:
          tokens: int32 [B, T].
          cache: the earlier tokens; each row must have room for T more.
          row: index of the cache's row to which the tokens belong, int32 [], B = 1; None: the
            tokens are those of all its rows.

        Returns:
          Hidden states [B, T, D] after the final norm, and the cache with T more tokens.
        """
        read = cache.lengths if row is None else cache.lengths[row][None]
        positions = read[:, None] + jnp.arange(tokens.shape[1])  # [B, T]
        angles = rotary_angles(self.config, positions, cache.size)
        x = self.embed_tokens[tokens].astype(self.config.dtype)
        x = constrain(x, ("batch", "length", "residual"))
        keys, values = [], []
        for block, k, v in zip(self.blocks, cache.keys, cache.values, strict=True):
            x, k, v = block.decode(x, angles, positions, k, v, row)
            keys.append(k)
            values.append(v)
        rows = slice(None) if row is None else row
        lengths = cache.lengths.at[rows].add(tokens.shape[1])
        return self.norm(x), KVCache(tuple(keys), tuple(values), lengths)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., padded vocabulary], padding masked."""
        return unembed(self.config, hidden, self.output_kernel[...])


def make_decoder(model: Llama, dtype: DType | None = None, *, int8: bool = False) -> Decoder:
    """A model's form for generation, with copies of its weights.

    Args:
      model: the model.
      dtype: dtype of weights and activations, such as "bfloat16"; by default `model.config.dtype`.
      int8: rounds the projections of all layers to int8, with one scale per output.
    """
    config = dataclasses.replace(model.config, dtype=dtype or model.config.dtype)
    return jax.jit(functools.partial(Decoder, config=config, int8=int8))(model)


def _embedding_and_output(model: Llama) -> tuple[jax.Array, jax.Array]:
    """Embedding [V, D] and output layer [D, V], with an adapter's new tokens."""
    new, tied = model.config.new_tokens, model.config.tie_embeddings
    embedding = model.embed_tokens[...]
    if new:
        embedding = embedding.at[new.start : new.stop].set(model.new_embeddings[...])
    kernel = embedding.T if tied else model.lm_head.kernel[...]
    if new and not tied:
        kernel = kernel.at[:, new.start : new.stop].set(model.new_outputs[...])
    return embedding, constrain(kernel, OUTPUT_AXES)


def _without_layers_axis(_: tuple, weights: nnx.Param) -> nnx.Param:
    """The metadata of one layer's weights; the arrays are still those of all layers."""
    return weights.replace(out_sharding=weights.get_metadata("out_sharding")[1:])


def _for_decoding(block: Block, int8: bool) -> Block:
    for _, node in nnx.iter_graph(block):
        if isinstance(node, Dense):
            node.merge_adapter()
            if int8:
                node.quantize()
    return block


def _cast(dtype: str) -> Callable[[jax.Array], jax.Array]:
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return lambda x: x.astype(dtype) if is_float(x) else x
