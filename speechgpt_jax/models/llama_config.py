"""The configuration of a LLaMA: its sizes and numerics, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_choice, check_number
from speechgpt_jax.models.layers import LinearRopeScaling, Llama3RopeScaling, LoraConfig

# Fields of LlamaConfig that must be at least 1.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
)

DType = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "minimal", "full"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and numerics of a LLaMA.

    Attributes:
      vocab_size: number of tokens; the weights have `padded_vocab_size` rows.
      num_kv_heads: number of key and value heads, each shared by a group of query heads.
      rope_scaling: stretches the rotary positions to longer texts.
      tie_embeddings: the output layer is the transposed embedding.
      qkv_bias: the projections to queries, keys and values have a bias (Qwen2).
      qk_norm: each head's query and key are normalised before they are rotated (Qwen3).
      dtype: dtype of activations; weights are float32.
      scan_layers: scan over the layers (compiles fast) or unroll them (runs faster on a CPU).
      remat: activations that the backward pass computes again: `none`, `minimal` (all but the
        outputs of projections) or `full` (all).
      lora: adapters, or None.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: LinearRopeScaling | Llama3RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    dtype: DType = "bfloat16"
    scan_layers: bool = True
    remat: Remat = "none"
    lora: LoraConfig | None = None

    def __post_init__(self):
        for name in SIZES:
            check_number(name, getattr(self, name), at_least=1)
        check_number("rope_theta", self.rope_theta, above=0)
        check_number("rms_norm_eps", self.rms_norm_eps, at_least=0)
        check_choice("dtype", self.dtype, get_args(DType))
        check_choice("remat", self.remat, get_args(Remat))
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads "
                f"{self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} must be even: RoPE rotates pairs.")
        if self.lora and (self.lora.new_tokens_from or 0) >= self.vocab_size:
            raise UserError(
                f"new_tokens_from {self.lora.new_tokens_from} must be below vocab_size"
                f" {self.vocab_size}."
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: the next multiple of 128, so that `model` can divide them."""
        return padded(self.vocab_size)

    @property
    def kv_width(self) -> int:
        """Outputs of the projections to keys and to values: `num_kv_heads` times `head_dim`."""
        return self.num_kv_heads * self.head_dim

    @property
    def new_tokens(self) -> range:
        """Ids of the tokens whose rows belong to the adapter; empty if there are none."""
        first = self.lora.new_tokens_from if self.lora else None
        return range(self.vocab_size if first is None else first, self.vocab_size)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LlamaConfig":
        """The inverse of `dataclasses.asdict`."""
        fields = dict(fields)
        if fields["lora"]:
            fields["lora"] = LoraConfig(**fields["lora"])
        if scaling := fields["rope_scaling"]:
            kind = Llama3RopeScaling if "original_length" in scaling else LinearRopeScaling
            fields["rope_scaling"] = kind(**scaling)
        return cls(**fields)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], run: object) -> "LlamaConfig":
        """The config of a language model, from the metadata of its checkpoint.

        Args:
          metadata: what `checkpoints.read_metadata(run)` returns.
          run: its folder, for messages.

        Raises:
          UserError: the checkpoint is that of another model, such as a HuBERT.
        """
        fields = metadata.get("model") or {}
        if not fields.keys() >= {*SIZES, "lora", "rope_scaling"}:
            raise UserError(
                f"{run} is not a run of a language model, but perhaps of an encoder or a vocoder;"
                " give one that speechgpt_jax.train or tools.convert_llama wrote."
            )
        return cls.from_dict(fields)


def padded(size: int) -> int:
    """The next multiple of 128, the number of columns that a TPU works on at once."""
    return -(-size // 128) * 128
