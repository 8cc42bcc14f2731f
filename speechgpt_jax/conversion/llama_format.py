"""LLaMA, Mistral, Qwen2 and Qwen3 in Hugging Face's format: config.json, generation_config.json,
the names of the weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields
from speechgpt_jax.limits import LARGEST_INT
from speechgpt_jax.models.layers import PROJECTIONS, LinearRopeScaling, Llama3RopeScaling
from speechgpt_jax.models.llama_config import LlamaConfig
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

# Our field -> field of config.json.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_LIMITS = {"at_least": 1, "at_most": LARGEST_INT}
# transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`.
_ROPE_FIELDS = ("rope_parameters", "rope_theta", "rope_scaling")
# Not exported: it names Python files of the source, which are not copied.
_LEFT_OUT = ("auto_map",)


def config_from(fields: Fields, compute_dtype: Any) -> LlamaConfig:
    """The fields of config.json -> our config.

    Raises:
      UserError: a field is missing, or has a value that is not supported.
    """
    source = fields.source
    if quantization := fields.inner("quantization_config").values:
        raise UserError(
            f"{source} says that the weights are quantised ({quantization.get('quant_method')}):"
            " load the model in transformers, call `model.dequantize()` and `save_pretrained`, and"
            " convert that folder."
        )
    family = _family_from(fields)
    fields.check_values(
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        "only SiLU and layers without these biases are built here",
    )
    _check_window(fields)
    sizes = {ours: fields.require(name, int, **_LIMITS) for ours, name in _SIZES.items()}
    check_token_ids(fields, sizes["vocab_size"])
    num_kv_heads = fields.get("num_key_value_heads", int | None, **_LIMITS)
    head_dim = fields.get("head_dim", int | None, **_LIMITS)
    with naming(source):
        rope_theta, rope_scaling = _rope_from(fields)
        return LlamaConfig(
            **sizes,
            num_kv_heads=num_kv_heads or sizes["num_heads"],
            head_dim=head_dim or sizes["hidden_size"] // sizes["num_heads"],
            rms_norm_eps=fields.require("rms_norm_eps", float),
            tie_embeddings=fields.get("tie_word_embeddings", bool, False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            dtype=compute_dtype,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
        )


def check_token_ids(fields: Fields, vocab_size: int) -> None:
    """Raises a UserError if bos or eos of config.json or generation_config.json is no token."""
    for name in ("bos_token_id", "eos_token_id"):
        fields.get(name, int | list[int] | None, at_least=0, below=vocab_size)
    # Padding often has no row in the embedding, or is -1.
    fields.get("pad_token_id", int | None, at_least=-1)


# Settings of generation_config.json -> type and limits as in transformers; a top_k of -1 is vLLM's.
_GENERATION: dict[str, tuple[Any, dict[str, float]]] = {
    "do_sample": (bool | None, {}),
    "temperature": (float | None, {"at_least": 0}),
    "top_k": (int | None, {"at_least": -1}),
    "top_p": (float | None, {"at_least": 0, "at_most": 1}),
    "min_p": (float | None, {"at_least": 0, "at_most": 1}),
    "repetition_penalty": (float | None, {"above": 0}),
    "max_length": (int | None, {"at_least": 1}),
    "max_new_tokens": (int | None, {"at_least": 1}),
}


def check_generation(fields: Fields) -> None:
    """Raises a UserError if a setting of generation_config.json can't be used."""
    for name, (kind, limits) in _GENERATION.items():
        fields.get(name, kind, **limits)


def config_to(
    config: LlamaConfig,
    dtype: str,
    source: Mapping,
    tokenizer: Tokenizer | None,
    context_length: int | None,
) -> dict:
    """Our config -> the fields of config.json, as every version of transformers reads them.

    Args:
      config: sizes of the run.
      dtype: type of the exported weights.
      source: fields of the config.json that the run was converted from, or {}.
      tokenizer: the run's; gives the ids of bos, eos and pad if the source doesn't.
      context_length: tokens; None takes the source's, or DEFAULT_CONTEXT_LENGTH.

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
        "temperature": Sampling.temperature,
        "top_k": Sampling.top_k,
        "top_p": Sampling.top_p,
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


def _family_from(fields: Fields) -> Family:
    model_type = fields.get("model_type", str, "llama")
    if model_type not in FAMILIES:
        raise UserError(
            f"{fields.source} has model_type {model_type!r}; only {', '.join(FAMILIES)} are built"
            " here."
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


def _check_window(fields: Fields) -> None:
    """Checks the window of a config.json, if one of the layers has one."""
    # Fields that are left out have the defaults of transformers.
    is_mistral = fields.get("model_type", str) == "mistral"
    context = fields.get(
        "max_position_embeddings", int, 131_072 if is_mistral else 32_768, at_least=1
    )
    if not is_mistral:
        if not fields.get("use_sliding_window", bool, False):
            return
        if layers := fields.get("layer_types", list[str] | None):
            if "sliding_attention" not in layers:
                return
        elif fields.get("max_window_layers", int, 28) >= fields.require("num_hidden_layers", int):
            return
    window = fields.get("sliding_window", int | None, 4096, at_least=1)
    check_window(fields.source, window, context, f"set max_position_embeddings to {window}")


def check_window(source: str, window: int | None, context: int, remedy: str) -> None:
    """Raises a UserError if a sliding window hides a part of the context.

    Args:
      source: file, for the message.
      window: tokens that a token sees; None: all.
      context: length in tokens.
      remedy: shortens the context to the window.
    """
    if window is not None and window < context:
        raise UserError(
            f"{source} has a sliding window of {window} tokens and a context of {context}; only"
            " full attention is built here: for texts within the window both are the same, so"
            f" {remedy} and convert again."
        )


def _rope_from(fields: Fields) -> tuple[float, LinearRopeScaling | Llama3RopeScaling | None]:
    """Theta and scaling of RoPE, from the fields of any version of transformers."""
    rope = fields.inner("rope_parameters")
    if not rope.values:
        rope = fields.inner("rope_scaling")
    if any(isinstance(x, Mapping) for x in rope.values.values()):
        raise UserError(f"{rope.source} differs by kind of layer; only one RoPE is built here.")
    theta = rope.get("rope_theta", float, fields.get("rope_theta", float, 10_000.0))
    share = rope.get(
        "partial_rotary_factor", float, fields.get("partial_rotary_factor", float, 1.0)
    )
    if share != 1.0:
        raise UserError(
            f"{fields.source} rotates {share} of each head; only all of it is built here."
        )
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return float(theta), None
    if kind == "linear":
        return float(theta), LinearRopeScaling(rope.require("factor", float))
    if kind == "llama3":
        return float(theta), Llama3RopeScaling(
            factor=rope.require("factor", float),
            low_frequency_factor=rope.require("low_freq_factor", float),
            high_frequency_factor=rope.require("high_freq_factor", float),
            original_length=rope.require("original_max_position_embeddings", int),
        )
    raise UserError(
        f"{fields.source} scales RoPE by {kind!r}; only linear and llama3 are built here."
    )


def _rope_to(config: LlamaConfig, source: Mapping) -> dict:
    """RoPE fields in the old spelling, and the source's own if the run has the same RoPE."""
    ours = config.rope_theta, config.rope_scaling
    fields = {"rope_theta": config.rope_theta, "rope_scaling": scaling_to(config.rope_scaling)}
    if source and _rope_from(Fields(source, "the source")) == ours:
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
