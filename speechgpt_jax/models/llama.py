"""LLaMA (Touvron et al. 2023), Mistral, Qwen2 and Qwen3 in Flax NNX, named as in Hugging Face.

    config = LlamaConfig(vocab_size=1200, hidden_size=256, ...)   # sizes: gin/models
    model = Llama(config, rngs=nnx.Rngs(0))
    hidden = model(tokens)           # [B, T] -> [B, T, D]
    logits = model.unembed(hidden)   # [B, T, padded vocabulary]

The layers are stacked: every parameter under `layers` has a leading axis `layers`. Accelerators
scan over it, so that one layer is compiled; on a CPU unrolled layers run faster.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax.errors import UserError
from speechgpt_jax.models import layers
from speechgpt_jax.models.attention import attention
from speechgpt_jax.models.collectives import constrain, gather, lookup, matmul
from speechgpt_jax.models.kv_cache import cached_attention, write_cache
from speechgpt_jax.models.layers import Dense, RMSNorm
from speechgpt_jax.models.llama_config import LlamaConfig, padded

# `LlamaConfig.remat` -> activations that are kept in memory for the backward pass.
REMAT_POLICIES = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Logical axes of the output layer's kernel.
OUTPUT_AXES = ("embed", "vocab")

# Size of a model -> axes of a mesh; the product of their sizes must divide it.
SHARDED_SIZES = {
    "num_heads": ("context", "model"),
    "hidden_size": ("fsdp", "context"),
    "intermediate_size": ("model",),
    "kv_width": ("model",),
    "padded_vocab_size": ("model",),
}
# In decoding each device stores keys and values of its own heads.
DECODING_SIZES = SHARDED_SIZES | {"num_kv_heads": ("model",)}

# Logit of the vocabulary's padding rows: they are never sampled, and the loss stays finite.
MASKED_LOGIT = -1e9


class Attention(nnx.Module):
    """Self-attention with rotary positions and grouped key and value heads."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        width, head_dim = config.hidden_size, config.head_dim
        query_width, kv_width = config.num_heads * head_dim, config.kv_width
        dense = functools.partial(_dense, config, rngs)
        bias = config.qkv_bias
        self.q_proj = dense("q_proj", width, query_width, ("embed", "heads"), bias)
        self.k_proj = dense("k_proj", width, kv_width, ("embed", "kv_heads"), bias)
        self.v_proj = dense("v_proj", width, kv_width, ("embed", "kv_heads"), bias)
        self.o_proj = dense("o_proj", query_width, width, ("heads", "embed"))
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        angles: tuple[jax.Array, jax.Array],  # 2 x float32 [B, T, 1, H / 2]
        segment_ids: jax.Array | None,  # [B, T]
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Output [B, T, D] of whole rows; with `rngs`, adapters have dropout."""
        query, key, value = self._project(x, angles, rngs)
        heads = attention(query, key, value, segment_ids)
        return self.o_proj(heads.reshape(*x.shape[:2], -1), rngs)

    def decode(
        self,
        x: jax.Array,  # [B, T, D]
        angles: tuple[jax.Array, jax.Array],  # 2 x float32 [B, T, 1, H / 2]
        positions: jax.Array,  # int32 [B, T]
        keys: jax.Array,  # [R, K, S, H]
        values: jax.Array,  # [R, K, S, H]
        row: jax.Array | None,  # int32 []; None: all rows
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Writes the next tokens at their `positions` of the cache, and attends to it.

        Returns:
          The output [B, T, D], and the cache's keys and values with the next tokens.
        """
        query, key, value = self._project(x, angles, None)
        first = positions[:, 0]
        keys, values = (
            write_cache(cached, new, first, row) for cached, new in ((keys, key), (values, value))
        )
        heads = cached_attention(query, keys, values, positions, row)
        return self.o_proj(heads.reshape(*x.shape[:2], -1)), keys, values

    def _project(self, x, angles, rngs):
        query, key, value = (
            projection(x, rngs).reshape(*x.shape[:2], -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return layers.rope(query, angles), layers.rope(key, angles), value


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        dense = functools.partial(_dense, config, rngs)
        self.gate_proj = dense("gate_proj", width, inner, ("embed", "mlp"))
        self.up_proj = dense("up_proj", width, inner, ("embed", "mlp"))
        self.down_proj = dense("down_proj", inner, width, ("mlp", "embed"))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:  # [B, T, D]
        gate = jax.nn.silu(self.gate_proj(x, rngs))
        return self.down_proj(gate * self.up_proj(x, rngs), rngs)


class Block(nnx.Module):
    """One layer: attention and MLP, each after a norm and with a residual connection."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        angles: tuple[jax.Array, jax.Array],  # 2 x float32 [B, T, 1, H / 2]
        segment_ids: jax.Array | None,  # [B, T]
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Attention and MLP on whole rows; arguments are `Attention.__call__`'s."""
        x = x + self.self_attn(self.input_layernorm(x), angles, segment_ids, rngs)
        x = x + self.mlp(self.post_attention_layernorm(x), rngs)
        return constrain(x, ("batch", "length", "residual"))

    def decode(
        self,
        x: jax.Array,  # [B, T, D]
        angles: tuple[jax.Array, jax.Array],  # 2 x float32 [B, T, 1, H / 2]
        positions: jax.Array,  # int32 [B, T]
        keys: jax.Array,  # [R, K, S, H]
        values: jax.Array,  # [R, K, S, H]
        row: jax.Array | None,  # int32 []; None: all rows
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Attention and MLP on the next tokens; arguments and results are `Attention.decode`'s."""
        y, keys, values = self.self_attn.decode(
            self.input_layernorm(x), angles, positions, keys, values, row
        )
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Llama(nnx.Module):
    """LLaMA for training: tokens -> hidden states -> logits.

    `decoder.Decoder` is its form for generation.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        rows, width = config.padded_vocab_size, config.hidden_size
        embedding = layers.normal_init(rngs.params(), (rows, width))
        self.embed_tokens = layers.parameter(embedding, ("vocab", "embed"))
        self.layers = _stacked_blocks(config, rngs)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Dense(width, rows, OUTPUT_AXES, lora=None, rngs=rngs)
        if new := config.new_tokens:
            # Copies, so that a new adapter changes nothing.
            embeddings = self.embed_tokens[new.start : new.stop]
            self.new_embeddings = layers.parameter(embeddings, (None, "embed"), nnx.LoRAParam)
            if not config.tie_embeddings:
                outputs = self.lm_head.kernel[:, new.start : new.stop]
                self.new_outputs = layers.parameter(outputs, ("embed", None), nnx.LoRAParam)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, [B, T, D] in `config.dtype`.

        Args:
          tokens: int32 [B, T].
          positions: int32 [B, T], restarting with each segment; by default 0..T-1.
          segment_ids: int32 [B, T]; a token only sees its own segment. By default one segment.
          dropout_key: PRNG key of the adapters' dropout; None: no dropout.
        """
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        angles = rotary_angles(self.config, positions, tokens.shape[1])
        graphdef, stacked = nnx.split(self.layers)

        def apply(x, layer):
            state, key = layer
            rngs = None if key is None else nnx.Rngs(dropout=key)
            return nnx.merge(graphdef, state)(x, angles, segment_ids, rngs), None

        if policy := REMAT_POLICIES[self.config.remat]:
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not self.config.scan_layers)
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, self.config.num_layers)
        x = self._embed(tokens)
        if self.config.scan_layers:
            x, _ = jax.lax.scan(apply, x, (stacked, keys))
        else:
            for layer in unstack((stacked, keys)):
                x, _ = apply(x, layer)
        return self.norm(x)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., padded vocabulary], padding masked."""
        tied, new = self.config.tie_embeddings, self.config.new_tokens
        kernel = self.embed_tokens.T if tied else self.lm_head.kernel[...]
        kernel = kernel.astype(self.config.dtype)
        if new:
            kernel = kernel.at[:, new.start : new.stop].set(self._new_kernel())
        return unembed(self.config, hidden, gather(kernel, OUTPUT_AXES))

    def output_kernels(self) -> list[tuple[jax.Array, range]]:
        """Parts [D, V] of the output layer, not gathered, and the token ids of their columns.

        The base's kernel comes first, then the kernel of the adapter's new tokens: with a frozen
        base only the second one has a gradient. Columns beyond the ids are padding.
        """
        config, new = self.config, self.config.new_tokens
        base = self.embed_tokens.T if config.tie_embeddings else self.lm_head.kernel[...]
        parts = [(base[:, : padded(new.start)].astype(config.dtype), range(new.start))]
        if new:
            padding = padded(len(new)) - len(new)
            kernel = jnp.pad(self._new_kernel(), ((0, 0), (0, padding)))
            # Without the barrier XLA for TPUs fails to compile the sum of its gradient for some
            # widths (SmolLM2's 576 on 16 chips).
            parts.append((jax.lax.optimization_barrier(kernel), new))
        return parts

    def quantize(self) -> None:
        """Rounds the projections of all layers to int8, as a frozen base for adapters.

        Embeddings, output layer and norms are unchanged.
        """
        for _, node in nnx.iter_graph(self.layers):
            if isinstance(node, Dense):
                node.quantize()

    def _embed(self, tokens):
        # The only place where the computation leaves float32.
        x = lookup(self.embed_tokens[...], tokens, self.config.dtype)
        if new := self.config.new_tokens:
            own_tokens = jnp.maximum(tokens - new.start, 0)
            own = lookup(self.new_embeddings[...], own_tokens, self.config.dtype)
            x = jnp.where((tokens < new.start)[..., None], x, own)
        return constrain(x, ("batch", "length", "residual"))

    def _new_kernel(self):
        tied = self.config.tie_embeddings
        kernel = self.new_embeddings.T if tied else self.new_outputs[...]
        return kernel.astype(self.config.dtype)


def unembed(config: LlamaConfig, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> float32 logits [..., padded vocabulary], padding masked.

    `kernel` are the output layer's weights [D, V] in `config.dtype`.
    """
    logits = matmul(hidden, kernel, OUTPUT_AXES, jnp.float32)
    in_use = jnp.arange(config.padded_vocab_size) < config.vocab_size
    return jnp.where(in_use, logits, MASKED_LOGIT)


def rotary_angles(
    config: LlamaConfig, positions: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """Sines and cosines of `layers.rope` for positions int32 [B, T] below `length`.

    Each is float32 [B, T, 1, H / 2].
    """
    frequencies = layers.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    return layers.rope_angles(positions, frequencies, length)


def param_count(config: LlamaConfig) -> int:
    """Number of weights, including padding rows of the vocabulary."""
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def matmul_flops_per_token(config: LlamaConfig, length: int) -> int:
    """Flops per token of the matrix products of one forward pass.

    Two for each weight of the projections and the output layer, plus attention to all `length`
    tokens, masked or not (Chowdhery et al. 2022, appendix B). A training step takes three times as
    many, twice with frozen weights (see `training.utilization`).
    """
    width, head_dim = config.hidden_size, config.head_dim
    query_width, kv_width = config.num_heads * head_dim, config.kv_width
    projections = width * (2 * query_width + 2 * kv_width + 3 * config.intermediate_size)
    attention = 2 * length * query_width
    return 2 * (config.num_layers * (projections + attention) + width * config.vocab_size)


def check_mesh(config: LlamaConfig, mesh: Mesh, sizes: Mapping[str, Sequence[str]]) -> None:
    """Raises a UserError if a mesh does not divide one of the `sizes`, such as SHARDED_SIZES."""
    for name, axes in sizes.items():
        size, shards = getattr(config, name), math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            raise UserError(
                f"the model's {name} {size} can't be sharded over {' x '.join(axes)} = {shards}"
                f" devices; choose a mesh in which {' x '.join(axes)} divides {size}."
            )


def unstack(tree: Any) -> list[Any]:
    """A tree of arrays [L, ...] -> L trees of arrays [...]; the gradient is one stack."""
    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten(layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]


def _dense(config, rngs, name, in_features, out_features, axes, bias=False):
    lora = config.lora if config.lora and name in config.lora.targets else None
    return Dense(in_features, out_features, axes, bias=bias, lora=lora, rngs=rngs)


def _stacked_blocks(config, rngs):
    """All blocks as one module: each parameter has a leading axis `layers`."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers"})
    def build(rngs):
        return Block(config, rngs)

    return build(rngs)
