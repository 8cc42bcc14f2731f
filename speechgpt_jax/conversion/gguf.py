"""LLaMA, Qwen2 and Qwen3 in llama.cpp's GGUF: one file with weights, sizes and tokenizer.

The weights are dequantised one by one while they are read. llama.cpp stores q_proj and k_proj of
the architecture "llama" in another order of rows; that is undone here.
"""

import pathlib
import re
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from speechgpt_jax.conversion import gguf_tokenizer
from speechgpt_jax.conversion.llama_format import FAMILIES, check_window, scaling_to
from speechgpt_jax.conversion.weights import Weights
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields
from speechgpt_jax.models.layers import Llama3RopeScaling, rope_frequencies
from speechgpt_jax.tokenizer import Tokenizer

# Names of architectures, which are also names of transformers; Mistral is stored as "llama".
ARCHITECTURES = ("llama", "qwen2", "qwen3")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# Name in GGUF -> name in transformers; `*` is the number of a layer.
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.*.attn_norm.weight": "model.layers.*.input_layernorm.weight",
    "blk.*.ffn_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    **{
        f"blk.*.{theirs}.{kind}": f"model.layers.*.{ours}.{kind}"
        for theirs, ours in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
        for kind in ("weight", "bias")
    },
}
# Divisors of the rotary frequencies, which stand for LLaMA 3's RoPE scaling.
_ROPE_DIVISORS = "rope_freqs.weight"


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The .gguf file that `folder` is or holds; None if it has none, or other weights as well.

    Raises:
      UserError: it holds several.
    """
    if folder.is_file() and folder.suffix == ".gguf":
        return folder
    found = sorted(folder.glob("*.gguf"))
    if not found or any((*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*"))):
        return None
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} .gguf files, {found[0].name} and {found[1].name} among"
            " them; name one of them instead of the folder."
        )
    return found[0]


class GgufFile:
    """A GGUF file: config, weights and tokenizer as those of a Hugging Face folder.

    Raises:
      UserError: the file is damaged, or of an architecture that is not built here.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            metadata = {name: field.contents() for name, field in reader.fields.items()}
        # The reader checks nothing: a short file fails wherever its bytes end.
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is truncated or no GGUF file ({reason}); get it again."
            ) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._metadata = Fields(metadata, str(path))
        self._architecture = self._metadata.require("general.architecture", str)
        if self._architecture not in ARCHITECTURES:
            raise UserError(
                f"{path} has the architecture {self._architecture!r}; only"
                f" {', '.join(ARCHITECTURES)} are built here."
            )
        if self._get("expert_count", int, 0):
            raise UserError(f"{path} is a mixture of experts; only dense models are built here.")

    # ---- config ----------------------------------------------------------------------------------

    def fields(self) -> dict[str, dict]:
        """{"config": the fields of config.json}.

        Raises:
          UserError: a field is missing, or has a value that is not built here.
        """
        width = self._require("embedding_length", int)
        rotated = self._get("rope.dimension_count", int)
        head_dim = self._get("attention.key_length", int, rotated) or width // self._heads("q")
        if rotated not in (None, head_dim):
            raise UserError(
                f"{self.path} rotates only a part of each head; that is not built here."
            )
        ids = {
            "bos_token_id": self._metadata.get("tokenizer.ggml.bos_token_id", int),
            "eos_token_id": self._metadata.get("tokenizer.ggml.eos_token_id", int),
            "pad_token_id": self._metadata.get("tokenizer.ggml.padding_token_id", int),
        }
        config = {
            "architectures": [FAMILIES[self._architecture].architecture],
            "model_type": self._architecture,
            "vocab_size": self._shape("token_embd.weight")[0],
            "hidden_size": width,
            "intermediate_size": self._require("feed_forward_length", int),
            "num_hidden_layers": self._require("block_count", int),
            "num_attention_heads": self._heads("q"),
            "num_key_value_heads": self._heads("k"),
            "head_dim": head_dim,
            "rms_norm_eps": _decimal(self._require("attention.layer_norm_rms_epsilon", float)),
            "rope_theta": _decimal(self._rope_theta()),
            "rope_scaling": self._rope_scaling(head_dim),
            "max_position_embeddings": self._context_length(),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            **{name: id_ for name, id_ in ids.items() if id_ is not None},
        }
        return {"config": config}

    def _rope_scaling(self, head_dim: int) -> dict | None:
        """The field of config.json; LLaMA 3's is recognised by its divisors of the frequencies."""
        if (kind := self._get("rope.scaling.type", str, "none")) not in ("none", "linear"):
            raise UserError(f"{self.path} scales RoPE by {kind!r}; only linear is built here.")
        if _ROPE_DIVISORS in self._tensors:
            divisors = self._array(_ROPE_DIVISORS, np.float32)
            scaling = Llama3RopeScaling(float(divisors.max()), 1.0, 4.0, 8192)
            plain = rope_frequencies(head_dim, self._rope_theta())
            if not np.allclose(plain / scaling(plain), divisors, rtol=1e-3):
                raise UserError(f"{self.path} scales RoPE in a way that is not known here.")
            return scaling_to(scaling)
        if kind == "linear":
            return {"rope_type": "linear", "factor": self._require("rope.scaling.factor", float)}
        return None

    # ---- weights ---------------------------------------------------------------------------------

    def weights(self, dtype: str) -> Weights:
        """The weights under their names in transformers, dequantised to `dtype`, a key of DTYPES.

        Raises:
          UserError: a tensor has no counterpart, or a quantisation that is not known.
        """
        names = {
            _renamed(name, str(self.path)): name for name in self._tensors if name != _ROPE_DIVISORS
        }
        shapes = {ours: self._shape(theirs) for ours, theirs in names.items()}
        return Weights(
            str(self.path),
            shapes,
            dict.fromkeys(names, dtype),
            lambda name: self._array(names[name], DTYPES[dtype]),
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise UserError(f"{self.path} lacks {name}; get it again.")
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def _array(self, name: str, dtype: Any) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which the gguf"
                " package can't dequantise; take a file of another quantisation."
            ) from error
        if self._architecture == "llama" and (found := re.search(r"attn_([qk])\.", name)):
            array = _unpermuted(array, self._heads(found[1]))
        return array.astype(dtype)

    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; raises a UserError if it is damaged or of an unknown kind."""
        return gguf_tokenizer.build(self._metadata)

    # ---- metadata --------------------------------------------------------------------------------

    def _get(self, name: str, kind: Any, default: Any = None, **limits: float) -> Any:
        return self._metadata.get(f"{self._architecture}.{name}", kind, default, **limits)

    def _require(self, name: str, kind: Any, **limits: float) -> Any:
        return self._metadata.require(f"{self._architecture}.{name}", kind, **limits)

    def _heads(self, projection: str) -> int:
        """Heads of the projection "q" or "k"."""
        heads = self._require("attention.head_count", int, at_least=1)
        return heads if projection == "q" else self._get("attention.head_count_kv", int, heads)

    def _context_length(self) -> int:
        context = self._require("context_length", int)
        # 0 is no window.
        window = self._get("attention.sliding_window", int, at_least=0) or None
        name = f"{self._architecture}.context_length"
        remedy = f"run `gguf-set-metadata {self.path} {name} {window}`"
        check_window(str(self.path), window, context, remedy)
        return context

    def _rope_theta(self) -> float:
        return self._get("rope.freq_base", float, 10_000.0)


def _renamed(name: str, source: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    found = re.search(r"\.(\d+)\.", name)
    number = found[1] if found else ""
    pattern = re.sub(r"\.\d+\.", ".*.", name)
    if pattern not in NAMES:
        raise UserError(f"{source} has an unexpected tensor {name}; this model is not built here.")
    return NAMES[pattern].replace("*", number)


def _unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of neighbouring rotary pairs (i, i + 1) -> rows of pairs (i, i + H / 2)."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))
