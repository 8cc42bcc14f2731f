"""LLaMA in Hugging Face's format: config.json, the names of the weights, PEFT's adapters."""

from collections.abc import Mapping

from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import (
    PROJECTIONS,
    LinearRopeScaling,
    Llama3RopeScaling,
    LoraConfig,
)
from speechgpt_jax.models.llama import LlamaConfig

_LAYER = "model.layers.*"
_PART_OF = {name: "self_attn" if name in PROJECTIONS[:4] else "mlp" for name in PROJECTIONS}

TABLE = [
    Row("embed_tokens", "model.embed_tokens.weight", AS_IS),
    Row("norm.scale", "model.norm.weight", AS_IS),
    Row("lm_head.kernel", "lm_head.weight"),
    *(
        Row(f"layers.{norm}.scale", f"{_LAYER}.{norm}.weight", AS_IS)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ),
    *(
        Row(f"layers.{part}.{name}.kernel", f"{_LAYER}.{part}.{name}.weight")
        for name, part in _PART_OF.items()
    ),
]
# Buffers that old versions of transformers saved.
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq",)

ADAPTER_TABLE = [
    Row(
        f"layers.{part}.{name}.lora_{matrix}",
        f"base_model.model.{_LAYER}.{part}.{name}.lora_{matrix.upper()}.weight",
    )
    for name, part in _PART_OF.items()
    for matrix in "ab"
]


def config_from(fields: Mapping, source: str, compute_dtype: str) -> LlamaConfig:
    """The fields of config.json -> our config; ValueError for what is not built here."""
    for name, value in {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }.items():
        if fields.get(name, value) != value:
            raise UserError(f"{source} has {name} {fields[name]!r}; only {value!r} is built here.")
    try:
        num_heads = fields["num_attention_heads"]
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
            dtype=compute_dtype,
            **_rope_from(fields, source),
        )
    except KeyError as error:
        raise UserError(f"{source} has no {error}; expected the config of a LLaMA.") from error


def config_to(config: LlamaConfig, context_length: int, dtype: str) -> dict:
    """Our config -> the fields of config.json, as every version of transformers reads them."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_to(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def adapter_config_from(fields: Mapping, source: str) -> LoraConfig:
    """adapter_config.json of PEFT -> ours; ValueError for variants that are not built here."""
    plain = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False}
    for name, value in plain.items():
        if fields.get(name, value) != value:
            raise UserError(f"{source} has {name} {fields[name]!r}; only {value!r} is built here.")
    for name in ("modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"):
        if fields.get(name):
            raise UserError(f"{source} has {name}; only the same adapter in all layers is built.")
    try:
        targets = fields["target_modules"]
        return LoraConfig(
            rank=fields["r"],
            alpha=fields["lora_alpha"],
            dropout=fields.get("lora_dropout", 0.0),
            targets=tuple(sorted([targets] if isinstance(targets, str) else targets)),
        )
    except KeyError as error:
        raise UserError(f"{source} has no {error}; expected the config of a LoRA.") from error


def adapter_config_to(lora: LoraConfig, base: str) -> dict:
    """Ours -> adapter_config.json; `base` is a folder or a name on the hub."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
    }


def _rope_from(fields, source) -> dict:
    """transformers 5 has `rope_parameters`; before, `rope_theta` and `rope_scaling`."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = rope.get("rope_theta", fields.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        scaling = None
    elif kind == "linear":
        scaling = LinearRopeScaling(rope["factor"])
    elif kind == "llama3":
        scaling = Llama3RopeScaling(
            factor=rope["factor"],
            low_frequency_factor=rope["low_freq_factor"],
            high_frequency_factor=rope["high_freq_factor"],
            original_length=rope["original_max_position_embeddings"],
        )
    else:
        raise UserError(f"{source} scales RoPE by {kind!r}; only linear and llama3 are built here.")
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _scaling_to(scaling) -> dict | None:
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
