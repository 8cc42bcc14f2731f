"""The layout of the released SpeechGPT, and a comparison of logits."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.models.llama import Llama
from speechgpt_jax.tokenizer import SentencePieceTokenizer
from tests.models.hugging_face import CONFIG

GOLDEN = Path(__file__).parent.parent / "testdata" / "golden"
TOKENIZER = SentencePieceTokenizer.from_folder(GOLDEN)
# The last rows are padding of ours: 3006 is no multiple of 128.
SMALL = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size)
PROMPTS = [
    "This is a system prompt.\n[Human]: what is a cat?<eoh> [SpeechGPT]:",
    "[Human]: <sosp><5><71><9><999><0><eosp><eoh>. [SpeechGPT]:",
]
# RoPE of LLaMA 3, in the form of transformers 5.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_released(folder: Path, model: transformers.LlamaForCausalLM) -> Path:
    """Writes SpeechGPT-7B-ma's and -cm's layout: float16, two .bin shards, the slow tokenizer."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = {name: x.half().clone() for name, x in model.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    names = list(tensors)
    half = len(names) // 2
    shards = {
        "pytorch_model-00001-of-00002.bin": names[:half],
        "pytorch_model-00002-of-00002.bin": names[half:],
    }
    for shard, members in shards.items():
        torch.save({name: tensors[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    TOKENIZER.save_pretrained(folder)
    return folder


def change_json(path: Path, **changes) -> None:
    """Sets fields of a JSON file; None removes one."""
    fields = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({name: x for name, x in fields.items() if x is not None}))


def assert_same_logits(ours: Llama, model, rtol=1e-4) -> None:
    tokens = np.random.default_rng(0).integers(3, ours.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    logits = np.asarray(_logits(ours, jnp.asarray(tokens)))[..., : ours.config.vocab_size]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < rtol


@nnx.jit
def _logits(model, tokens):
    return model.unembed(model(tokens))
