"""Small GGUF files of LLaMA, Qwen2 and Qwen3 in several quantisations."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import transformers

from speechgpt_jax.conversion.gguf import NAMES

# Kinds of tokens.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def write(
    path: Path,
    model: transformers.PreTrainedModel,
    tokenizer: dict,
    types: Mapping[str, str] = MappingProxyType({}),
    more: Mapping[str, np.ndarray] = MappingProxyType({}),
    **changes,
) -> Path:
    """Writes a model as llama.cpp's converter does.

    Args:
      path: the file.
      model: a LLaMA, Qwen2 or Qwen3 of transformers.
      tokenizer: metadata by name without "tokenizer.ggml."; see `byte_level`.
      types: part of a tensor's name -> its quantisation; others are F32.
      more: name -> tensor, besides those of the model.
      changes: metadata of the architecture by name (dots as __); None leaves one out.
    """
    config = model.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, changes.pop("architecture", architecture))
    metadata = {
        "block_count": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention__head_count": config.num_attention_heads,
        "attention__head_count_kv": config.num_key_value_heads,
        "attention__key_length": config.head_dim,
        "rope__dimension_count": config.head_dim,
        "rope__freq_base": float(config.rope_parameters["rope_theta"]),
        "attention__layer_norm_rms_epsilon": config.rms_norm_eps,
        **changes,
    }
    for name, value in metadata.items():
        _add(writer, f"{architecture}.{name.replace('__', '.')}", value)
    for name, value in tokenizer.items():
        prefix = "tokenizer" if name == "chat_template" else "tokenizer.ggml"
        _add(writer, f"{prefix}.{name}", value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        their_name = _their_name(name)
        array = tensor.float().numpy()
        if architecture == "llama" and "q_proj" in name:
            array = _permuted(array, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            array = _permuted(array, config.num_key_value_heads)
        kind = next((kind for part, kind in types.items() if part in their_name), "F32")
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(their_name, gguf.quantize(array, kind), raw_dtype=kind)
    for name, tensor in more.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(folder: Path, pre: str, **changes) -> dict:
    """Metadata of the tokenizer in a folder, which has a byte-level tokenizer.json."""
    fields = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["content"]: token for token in fields["added_tokens"]}
    vocabulary = fields["model"]["vocab"] | {token: x["id"] for token, x in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [
        NORMAL if t not in added else CONTROL if added[t]["special"] else USER_DEFINED
        for t in tokens
    ]
    named = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}
    ids = {}
    for theirs, name in named.items():
        token = config.get(name)
        token = token["content"] if isinstance(token, dict) else token
        if token:
            ids[f"{theirs}_token_id"] = vocabulary[token]
    merges = [" ".join(merge) for merge in fields["model"]["merges"]]
    metadata = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds}
    return metadata | {"merges": merges} | ids | changes


def _add(writer: gguf.GGUFWriter, name: str, value) -> None:
    if value is None:
        return
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(name, value)


def _their_name(name: str) -> str:
    number = next((part for part in name.split(".") if part.isdigit()), "")
    theirs = {ours.replace("*", number): theirs for theirs, ours in NAMES.items()}
    return theirs[name].replace("*", number)


def _permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q_proj and k_proj."""
    halves = array.reshape(heads, 2, -1, array.shape[-1])
    return halves.swapaxes(1, 2).reshape(array.shape)
