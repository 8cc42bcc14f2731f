"""HuBERT of fairseq or Hugging Face -> a folder that the tools here take as --hubert.

    python -m tools.convert_hubert mhubert_base_vp_en_es_fr_it3.pt hubert
    python -m tools.convert_kmeans mhubert_base_vp_en_es_fr_it3_L11_km1000.bin hubert

CHECKPOINT is fairseq's .pt file or a folder of `transformers.HubertModel`. No fairseq is needed,
and nothing that is pickled in the file is run.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from speechgpt_jax.conversion import key_table, output, pickles, weight_norm, weights
from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import save_hubert

PUBLISHED = {
    "23527cd6311a6617bfa199f574e2eed478cd6a58a634f4007165c10ec0019832": (
        "the published mhubert_base_vp_en_es_fr_it3"
    ),
}


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}.scale", f"{theirs}.weight", AS_IS),
        Row(f"{ours}.bias", f"{theirs}.bias", AS_IS),
    ]


def _linear(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}.kernel", f"{theirs}.weight"), Row(f"{ours}.bias", f"{theirs}.bias", AS_IS)]


_CONVS, _LAYER = "feature_extractor.conv_layers", "encoder.layers.*"

FAIRSEQ = [
    Row("front_end.conv_layers.*.kernel", f"{_CONVS}.*.0.weight"),
    *_norm("front_end.group_norm", f"{_CONVS}.0.2"),
    *_norm("front_end.layer_norm", "layer_norm"),
    *_linear("front_end.projection", "post_extract_proj"),
    *_linear("positions", "encoder.pos_conv.0"),
    *_norm("layer_norm", "encoder.layer_norm"),
    *_linear("layers.*.attention.q_proj", f"{_LAYER}.self_attn.q_proj"),
    *_linear("layers.*.attention.k_proj", f"{_LAYER}.self_attn.k_proj"),
    *_linear("layers.*.attention.v_proj", f"{_LAYER}.self_attn.v_proj"),
    *_linear("layers.*.attention.out_proj", f"{_LAYER}.self_attn.out_proj"),
    *_norm("layers.*.layer_norm", f"{_LAYER}.self_attn_layer_norm"),
    *_linear("layers.*.intermediate_dense", f"{_LAYER}.fc1"),
    *_linear("layers.*.output_dense", f"{_LAYER}.fc2"),
    *_norm("layers.*.final_layer_norm", f"{_LAYER}.final_layer_norm"),
]
# What only the pre-training needs.
FAIRSEQ_IGNORED = ("mask_emb", "label_embs_concat", "final_proj.weight", "final_proj.bias")

HUGGING_FACE = [
    Row("front_end.conv_layers.*.kernel", f"{_CONVS}.*.conv.weight"),
    *_norm("front_end.group_norm", f"{_CONVS}.0.layer_norm"),
    *_norm("front_end.layer_norm", "feature_projection.layer_norm"),
    *_linear("front_end.projection", "feature_projection.projection"),
    *_linear("positions", "encoder.pos_conv_embed.conv"),
    *_norm("layer_norm", "encoder.layer_norm"),
    *_linear("layers.*.attention.q_proj", f"{_LAYER}.attention.q_proj"),
    *_linear("layers.*.attention.k_proj", f"{_LAYER}.attention.k_proj"),
    *_linear("layers.*.attention.v_proj", f"{_LAYER}.attention.v_proj"),
    *_linear("layers.*.attention.out_proj", f"{_LAYER}.attention.out_proj"),
    *_norm("layers.*.layer_norm", f"{_LAYER}.layer_norm"),
    *_linear("layers.*.intermediate_dense", f"{_LAYER}.feed_forward.intermediate_dense"),
    *_linear("layers.*.output_dense", f"{_LAYER}.feed_forward.output_dense"),
    *_norm("layers.*.final_layer_norm", f"{_LAYER}.final_layer_norm"),
]


def convert(checkpoint: pathlib.Path, out: pathlib.Path, feature_layer: int) -> Hubert:
    """Writes `config.json` and `model.safetensors`; returns what they hold.

    Args:
      checkpoint: fairseq's .pt file or a Hugging Face folder.
      out: gets both files; centroids may be there already.
      feature_layer: 1-based layer whose output the units are made of.

    Raises:
      UserError: the checkpoint is damaged, refused or of another architecture.
    """
    output.refuse_existing(out, "config.json", "model.safetensors")
    read = _read_hugging_face if checkpoint.is_dir() else _read_fairseq
    config, arrays, table, ignored = read(checkpoint, feature_layer)
    source = weights.from_arrays(checkpoint, arrays)
    hubert = key_table.load_module(lambda: Hubert(config, rngs=nnx.Rngs(0)), table, source, ignored)
    with output.whole_folder(out) as folder:
        save_hubert(folder, hubert)
    return hubert


def _read_fairseq(path, feature_layer: int):
    saved = pickles.load_torch(path)
    if not (isinstance(saved, dict) and isinstance(saved.get("model"), dict)):
        raise UserError(f"{path} has no weights under 'model'; expected a checkpoint of fairseq.")
    arrays = weight_norm.fold(_float32(weights.from_torch(path, saved["model"])))
    config = _fairseq_config(path, arrays, _fairseq_fields(saved), feature_layer)
    return config, arrays, FAIRSEQ, FAIRSEQ_IGNORED


def _fairseq_fields(saved: Mapping) -> dict:
    """The model's options: under `cfg` since fairseq 0.11, the attributes of `args` before."""
    cfg = saved.get("cfg")
    if isinstance(cfg, dict) and cfg.get("model") is not None:
        options = cfg["model"]
    else:
        options = saved.get("args")
    # A namespace came as an empty shell with its attributes.
    options = getattr(options, "state", options)
    return options if isinstance(options, dict) else {}


def _fairseq_config(path, arrays, fields, feature_layer: int) -> HubertConfig:
    """Sizes are read off the weights; what they don't tell comes from the options."""
    if fields.get("layer_norm_first") or fields.get("extractor_mode", "default") != "default":
        raise UserError(
            f"{path} normalises as the large HuBERT does (layer_norm_first or layer_norm in every"
            " convolution); only the base architecture is built here."
        )
    convs = [arrays[n] for n in _numbered(arrays, "feature_extractor.conv_layers.{}.0.weight")]
    positions = arrays.get("encoder.pos_conv.0.weight")
    if not convs or positions is None:
        raise UserError(f"{path} has no HuBERT under 'model': its convolutions are missing.")
    hidden_size, group_width, position_kernel = positions.shape
    heads = fields.get("encoder_attention_heads", hidden_size // 64)
    return HubertConfig(
        conv_dim=tuple(x.shape[0] for x in convs),
        conv_kernel=tuple(x.shape[2] for x in convs),
        conv_stride=_strides(fields.get("conv_feature_layers"), len(convs)),
        hidden_size=hidden_size,
        num_layers=len(list(_numbered(arrays, "encoder.layers.{}.fc1.weight"))),
        num_heads=heads,
        intermediate_size=arrays["encoder.layers.0.fc1.weight"].shape[0],
        position_kernel=position_kernel,
        position_groups=hidden_size // group_width,
        feature_layer=feature_layer,
    )


def _numbered(names, pattern):
    """Those of "x.0", "x.1", ... that are there."""
    i = 0
    while pattern.format(i) in names:
        yield pattern.format(i)
        i += 1


def _strides(text: str | None, count: int) -> tuple[int, ...]:
    """[(512,10,5)] + [(512,3,2)] * 4 -> (5, 2, 2, 2, 2); fairseq's own where there is no text."""
    if text is None:
        return HubertConfig.conv_stride[:count]
    strides = []
    for group, times in re.findall(r"\[([^]]*)\]\s*(?:\*\s*(\d+))?", text):
        layers = re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)", group)
        strides += [int(stride) for stride in layers] * int(times or 1)
    if len(strides) != count:
        raise UserError(f"conv_feature_layers {text!r} does not describe {count} convolutions.")
    return tuple(strides)


def _read_hugging_face(folder, feature_layer: int):
    fields = weights.read_json(folder / "config.json")
    expected = {
        "model_type": "hubert",
        "feat_extract_norm": "group",
        "do_stable_layer_norm": False,
        "conv_bias": False,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
    }
    for name, value in expected.items():
        if fields.get(name, value) != value:
            raise UserError(
                f"{folder}/config.json has {name} {fields[name]!r}; only the base HuBERT's"
                f" {value!r} is built here."
            )
    source = weights.from_folder(folder, ("model.safetensors", "pytorch_model.bin"))
    # Fine-tuned models hold theirs under this name.
    arrays = {n.removeprefix("hubert."): x for n, x in _float32(source).items()}
    config = HubertConfig(
        conv_dim=tuple(fields["conv_dim"]),
        conv_kernel=tuple(fields["conv_kernel"]),
        conv_stride=tuple(fields["conv_stride"]),
        hidden_size=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        intermediate_size=fields["intermediate_size"],
        position_kernel=fields["num_conv_pos_embeddings"],
        position_groups=fields["num_conv_pos_embedding_groups"],
        layer_norm_eps=fields["layer_norm_eps"],
        feature_layer=feature_layer,
    )
    return config, weight_norm.fold(arrays), HUGGING_FACE, ("masked_spec_embed", "lm_head.*")


def _float32(source) -> dict[str, np.ndarray]:
    return {name: source.read(name).astype(np.float32) for name in source.shapes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layer", type=int, default=11, help="1-based; its output makes the units")
    args = parser.parse_args()
    with one_line_errors():
        if not args.checkpoint.is_dir():
            print(weights.describe_sha256(args.checkpoint, PUBLISHED))
        hubert = convert(args.checkpoint, args.out, args.layer)
        sizes = [x.size for x in jax.tree.leaves(nnx.state(hubert, nnx.Param))]
        print(f"{args.out}: HuBERT of {sum(sizes):,} parameters, features of layer {args.layer}.")


if __name__ == "__main__":
    main()
