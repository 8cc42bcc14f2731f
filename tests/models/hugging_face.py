"""The reference: a model of `transformers`, and the copy of its weights into our model.

torch and transformers are imported where a reference is made: that takes seconds.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from speechgpt_jax.models.layers import Llama3RopeScaling
from speechgpt_jax.models.llama import Llama, LlamaConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}

# Unusual on purpose: a padded vocabulary, grouped heads, hidden size not heads times head size.
CONFIG = LlamaConfig(
    vocab_size=150,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype="float32",
    scan_layers=False,
)


# What differs between the families, on top of CONFIG.
FAMILIES = {
    "Llama": {},
    "Mistral": {"rope_theta": 1e6},
    "Qwen2": {"qkv_bias": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_embeddings": True},
    "Qwen3": {"qk_norm": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "num_kv_heads": 1},
    "Llama 3": {
        "rope_theta": 5e5,
        "rope_scaling": Llama3RopeScaling(32.0, 1.0, 4.0, 16),
        "tie_embeddings": True,
    },
}


def reference(config: LlamaConfig, seed=0, family: str | None = None) -> PreTrainedModel:
    """A random `transformers` model of this shape, with weights large enough to matter.

    `family` is a prefix of its classes; by default the one that has the fields of `config`.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    family = family or ("Qwen2" if config.qkv_bias else "Qwen3" if config.qk_norm else "Llama")
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            rope_parameters=_rope_parameters(config),
            initializer_range=0.1,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **({"sliding_window": None} if family == "Mistral" else {}),
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            if "bias" in name:
                weight.uniform_(-1, 1)
    return model.eval()


def _rope_parameters(config):
    scaling = config.rope_scaling
    parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
    if isinstance(scaling, Llama3RopeScaling):
        parameters |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    elif scaling:
        parameters |= {"rope_type": "linear", "factor": scaling.factor}
    return parameters


def to_jax(config: LlamaConfig, model: PreTrainedModel) -> Llama:
    """Our model with the weights of `model`."""
    ours = Llama(config, rngs=nnx.Rngs(0))
    theirs = model.model
    padding = config.padded_vocab_size - config.vocab_size
    ours.embed_tokens[...] = jnp.pad(_array(theirs.embed_tokens.weight), ((0, padding), (0, 0)))
    ours.norm.scale[...] = _array(theirs.norm.weight)
    if not config.tie_embeddings:
        ours.lm_head.kernel[...] = jnp.pad(_array(model.lm_head.weight).T, ((0, 0), (0, padding)))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        getattr(ours.layers, norm).scale[...] = _stack(theirs, lambda x, n=norm: getattr(x, n))
    for part, names in PROJECTIONS.items():
        for name in names:
            kernels = _stack(theirs, lambda x, p=part, n=name: getattr(getattr(x, p), n))
            getattr(getattr(ours.layers, part), name).kernel[...] = kernels.swapaxes(1, 2)
    attention = ours.layers.self_attn
    if config.qkv_bias:
        for name in PROJECTIONS["self_attn"][:3]:
            biases = [_array(getattr(layer.self_attn, name).bias) for layer in theirs.layers]
            getattr(attention, name).bias[...] = jnp.stack(biases)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            scales = _stack(theirs, lambda x, n=name: getattr(x.self_attn, n))
            getattr(attention, name).scale[...] = scales
    return ours


def with_config(model: Llama, **changes) -> Llama:
    """The same weights under a changed config, such as `scan_layers=True`."""
    changed = Llama(dataclasses.replace(model.config, **changes), rngs=nnx.Rngs(0))
    nnx.update(changed, nnx.state(model))
    return changed


def _array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def _stack(theirs, pick):
    return jnp.stack([_array(pick(layer).weight) for layer in theirs.layers])
