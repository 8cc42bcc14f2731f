"""LLaMA, Mistral, Qwen2 and Qwen3 in Hugging Face's format: config.json, generation_config.json,
the names of the weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import PROJECTIONS, LinearRopeScaling, Llama3RopeScaling
from speechgpt_jax.models.llama import LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer

LAYER = "model.layers.*"
# Projection -> part of the layer that holds it: {"q_proj": "self_attn", ..., "down_proj": "mlp"}.
PART_OF = {name: "self_attn" if name in PROJECTIONS[:4] else "mlp" for name in PROJECTIONS}

TABLE = [
    Row("embed_tokens", "model.embed_tokens.weight", AS_IS),
    Row("norm.scale", "model.norm.weight", AS_IS),
    Row("lm_head.kernel", "lm_head.weight"),
    *(
        Row(f"layers.{norm}.scale", f"{LAYER}.{norm}.weight", AS_IS)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ),
    *(
        Row(f"layers.{part}.{name}.kernel", f"{LAYER}.{part}.{name}.weight")
        for name, part in PART_OF.items()
    ),
    *(
        Row(f"layers.self_attn.{name}_proj.bias", f"{LAYER}.self_attn.{name}_proj.bias", AS_IS)
        for name in "qkv"
    ),
    *(
        Row(f"layers.self_attn.{name}_norm.scale", f"{LAYER}.self_attn.{name}_norm.weight", AS_IS)
        for name in "qk"
    ),
]
# Buffers that old versions of transformers saved.
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq",)

# Context length in tokens where neither the source nor the user gives one.
DEFAULT_CONTEXT_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type` of transformers, and the fields of our config that it determines."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True),
}

# transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`.
_ROPE_FIELDS = ("rope_parameters", "rope_theta", "rope_scaling")
# Not exported: it names Python files of the source, which are not copied.
_LEFT_OUT = ("auto_map",)


def config_from(fields: Mapping, source: str, compute_dtype: Any) -> LlamaConfig:
    """The fields of config.json -> our config.

    Raises:
      UserError: a field is missing, or has a value that is not supported.
    """
    if method := fields.get("quantization_config"):
        raise UserError(
            f"{source} says that the weights are quantised ({method.get('quant_method')}): load the"
            " model in transformers, call `model.dequantize()` and `save_pretrained`, and convert"
            " that folder."
        )
    family = _family_from(fields, source)
    for name, value in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
        if fields.get(name, value) != value:
            raise UserError(f"{source} has {name} {fields[name]!r}; only {value!r} is built here.")
    try:
        _check_window(fields, source)
        num_heads = fields["num_attention_heads"]
        rope_theta, rope_scaling = _rope_from(fields, source)
        return LlamaConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=fields.get("num_key_value_heads") or num_heads,
            head_dim=fields.get("head_dim") or fields["hidden_size"] // num_heads,
            rms_norm_eps=fields["rms_norm_eps"],
            tie_embeddings=fields.get("tie_word_embeddings", False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            dtype=compute_dtype,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
        )
    except KeyError as error:
        raise UserError(f"{source} has no {error}; expected the config of a LLaMA.") from error


def config_to(
    config: LlamaConfig,
    dtype: str,
    source: Mapping,
    tokenizer: Tokenizer | None,
    context_length: int | None,
) -> dict:
    """Our config -> the fields of config.json, as every version of transformers reads them.

    Args:
      config: of the run.
      dtype: of the exported weights.
      source: fields of the config.json that the run was converted from, or {}.
      tokenizer: the run's; gives the ids of bos, eos and pad if the source doesn't.
      context_length: in tokens; None takes the source's, or DEFAULT_CONTEXT_LENGTH.

    Raises:
      UserError: no family of transformers has this combination of fields.
    """
    model_type = _model_type_to(config, source)
    ours = {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **({"dtype": dtype} if "dtype" in source else {}),
    }
    kept = {n: x for n, x in source.items() if n not in (*_ROPE_FIELDS, *_LEFT_OUT)}
    defaults = {"max_position_embeddings": DEFAULT_CONTEXT_LENGTH, **_token_ids(tokenizer)}
    given = {"max_position_embeddings": context_length} if context_length else {}
    return defaults | kept | ours | _rope_to(config, source) | given


def generation_config(config_fields: Mapping) -> dict:
    """Decoding settings of the released SpeechGPT, for models without a generation_config.json.

    `config_fields` are those of the model's config.json.
    """
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        **{name: config_fields[name] for name in ids if name in config_fields},
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.8,
        "max_new_tokens": config_fields["max_position_embeddings"],
    }


def _token_ids(tokenizer: Tokenizer | None) -> dict:
    if tokenizer is None:
        return {}
    stop_ids = [*tokenizer.stop_ids]
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop_ids if len(stop_ids) > 1 else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _family_from(fields: Mapping, source: str) -> Family:
    model_type = fields.get("model_type", "llama")
    if model_type not in FAMILIES:
        raise UserError(
            f"{source} has model_type {model_type!r}; only {', '.join(FAMILIES)} are built here."
        )
    return FAMILIES[model_type]


def _model_type_to(config: LlamaConfig, source: Mapping) -> str:
    """The model_type to export as: the source's if its models have the config's fields."""
    fits = [
        model_type
        for model_type, family in FAMILIES.items()
        if (family.qkv_bias, family.qk_norm) == (config.qkv_bias, config.qk_norm)
    ]
    if not fits:
        raise UserError(
            f"a model with qkv_bias {config.qkv_bias} and qk_norm {config.qk_norm} can't be"
            f" exported: no architecture among {', '.join(FAMILIES)} has both."
        )
    return source["model_type"] if source.get("model_type") in fits else fits[0]


def _check_window(fields: Mapping, source: str) -> None:
    """Raises a UserError if tokens see only a part of the context (sliding-window attention)."""
    # Fields that are left out have the defaults of transformers.
    if fields.get("model_type") == "mistral":
        window, context = fields.get("sliding_window", 4096), 131_072
    elif fields.get("use_sliding_window"):
        window, context = fields.get("sliding_window", 4096), 32_768
        layers = fields.get("layer_types")
        if layers and "sliding_attention" not in layers:
            return
        if not layers and fields.get("max_window_layers", 28) >= fields["num_hidden_layers"]:
            return
    else:
        return
    context = fields.get("max_position_embeddings", context)
    if window is not None and window < context:
        raise UserError(
            f"{source} has a sliding window of {window} tokens and a context of {context}; only"
            " full attention is built here: for texts within the window both are the same, so set"
            f" max_position_embeddings to {window} and convert again."
        )


def _rope_from(
    fields: Mapping, source: str
) -> tuple[float, LinearRopeScaling | Llama3RopeScaling | None]:
    """Theta and scaling of RoPE, from the fields of any version of transformers."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    if any(isinstance(x, Mapping) for x in rope.values()):
        raise UserError(f"{source} has another RoPE per kind of layer; only one is built here.")
    share = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise UserError(f"{source} rotates {share} of each head; only all of it is built here.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRopeScaling(rope["factor"])
    if kind == "llama3":
        return theta, Llama3RopeScaling(
            factor=rope["factor"],
            low_frequency_factor=rope["low_freq_factor"],
            high_frequency_factor=rope["high_freq_factor"],
            original_length=rope["original_max_position_embeddings"],
        )
    raise UserError(f"{source} scales RoPE by {kind!r}; only linear and llama3 are built here.")


def _rope_to(config: LlamaConfig, source: Mapping) -> dict:
    """RoPE fields in the old spelling, and the source's own if the run has the same RoPE."""
    ours = config.rope_theta, config.rope_scaling
    fields = {"rope_theta": config.rope_theta, "rope_scaling": scaling_to(config.rope_scaling)}
    if source and _rope_from(source, "the source") == ours:
        return fields | {name: source[name] for name in _ROPE_FIELDS if name in source}
    return fields


def scaling_to(scaling: LinearRopeScaling | Llama3RopeScaling | None) -> dict | None:
    """The field `rope_scaling` of config.json."""
    if scaling is None:
        return None
    if isinstance(scaling, LinearRopeScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_length,
    }
