"""HuBERT of fairseq or Hugging Face -> our folder of config.json and model.safetensors."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from speechgpt_jax import files
from speechgpt_jax.annotations import annotations
from speechgpt_jax.conversion import key_table, pickles, weight_norm, weights
from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields
from speechgpt_jax.limits import LARGEST_INT
from speechgpt_jax.speech.audio import SAMPLE_RATE
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

# Tensors of pre-training and fine-tuning heads, on which the features don't depend.
FAIRSEQ_HEADS = (
    *("mask_emb", "label_embs_concat", "final_proj.weight", "final_proj.bias"),
    *("target_glu.0.weight", "target_glu.0.bias"),
)
HUGGING_FACE_HEADS = (
    *("masked_spec_embed", "label_embs_concat", "final_proj.weight", "final_proj.bias"),
    *("lm_head.weight", "lm_head.bias"),  # HubertForCTC
    *("projector.weight", "projector.bias", "classifier.weight", "classifier.bias"),
    "layer_weights",  # HubertForSequenceClassification
)
# Prefixes of the HuBERT's tensors in fine-tuned models of fairseq (CTC, sequence to sequence).
_FAIRSEQ_PREFIXES = ("w2v_encoder.w2v_model.", "encoder.w2v_model.")

_BASE_ONLY = (
    "only the architecture of the base HuBERT can be converted; give a base checkpoint, such as"
    " mhubert_base or hubert-base-ls960"
)


class _Checkpoint(NamedTuple):
    """Content of a checkpoint of either format."""

    config: HubertConfig
    arrays: dict[str, np.ndarray]
    table: list[Row]
    heads: tuple[str, ...]


def convert(checkpoint: str | pathlib.Path, out: str | pathlib.Path, feature_layer: int) -> Hubert:
    """Writes `config.json` and `model.safetensors`; returns the HuBERT that they hold.

    Args:
      checkpoint: fairseq's .pt file or a Hugging Face folder.
      out: folder for both files; it may hold centroids already.
      feature_layer: layer, counted from 1, whose output is the features.

    Raises:
      UserError: the checkpoint is damaged, unsafe to read or of another architecture.
    """
    checkpoint = pathlib.Path(checkpoint)
    files.refuse_existing(out, "config.json", "model.safetensors")
    read = _read_hugging_face if checkpoint.is_dir() else _read_fairseq
    config, arrays, table, heads = read(checkpoint, feature_layer)
    source = weights.from_arrays(checkpoint, arrays)
    source.check_layers("encoder.layers.", config.num_layers)
    hubert = key_table.load_module(lambda: Hubert(config, rngs=nnx.Rngs(0)), table, source, heads)
    with files.whole_folder(out) as folder:
        save_hubert(folder, hubert)
    return hubert


# ---- fairseq -------------------------------------------------------------------------------------


def _read_fairseq(path: pathlib.Path, feature_layer: int) -> _Checkpoint:
    saved = pickles.load_torch(path)
    if not (isinstance(saved, dict) and isinstance(saved.get("model"), dict)):
        raise UserError(
            f"{path} has no weights under 'model'; expected a checkpoint of fairseq. A model of"
            " transformers is given as its folder."
        )
    tensors = _without_fine_tuning(saved["model"])
    arrays = weight_norm.fold(weights.from_torch(path, tensors).read_float32())
    model, task = (Fields(options, str(path)) for options in _fairseq_options(saved))
    config = _fairseq_config(arrays, model, task, feature_layer)
    return _Checkpoint(config, arrays, FAIRSEQ, FAIRSEQ_HEADS)


def _without_fine_tuning(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors of the HuBERT in a fine-tuned model, without their prefix; others unchanged."""
    for prefix in _FAIRSEQ_PREFIXES:
        inner = {n.removeprefix(prefix): x for n, x in tensors.items() if str(n).startswith(prefix)}
        if inner:
            return inner
    return tensors


def _fairseq_options(saved: Mapping) -> tuple[dict, dict]:
    """Options of the HuBERT and of its task.

    fairseq 0.11 and later keep them in `cfg`, earlier versions in the attributes of `args`. A
    fine-tuned model keeps those of the pre-trained one in `w2v_args`.
    """
    cfg, args = _as_dict(saved.get("cfg")), _as_dict(saved.get("args"))
    model = _as_dict(cfg.get("model")) or args
    task = _as_dict(cfg.get("task")) or args
    pretrained = _as_dict(model.get("w2v_args"))
    if pretrained:
        model = _as_dict(pretrained.get("model")) or pretrained
        pretrained_task = _as_dict(pretrained.get("task")) or pretrained
        task = {**pretrained_task, **task}
    return model, task


def _as_dict(options: Any) -> dict:
    # `pickles.load_torch` returns a namespace as an Inert object with the attributes in `state`.
    options = getattr(options, "state", options)
    return options if isinstance(options, dict) else {}


def _fairseq_config(
    arrays: Mapping[str, np.ndarray], model: Fields, task: Fields, feature_layer: int
) -> HubertConfig:
    """Config with the sizes of the weights; everything else comes from the options."""
    path = model.source
    base = {
        "layer_norm_first": False,
        "extractor_mode": "default",
        "conv_bias": False,
        "activation_fn": "gelu",
    }
    model.check_values(base, _BASE_ONLY)
    task.check_values({"sample_rate": SAMPLE_RATE}, f"{_BASE_ONLY}, of 16 kHz")
    convs = [arrays[n] for n in _numbered(arrays, "feature_extractor.conv_layers.{}.0.weight")]
    missing = np.empty(())
    positions = arrays.get("encoder.pos_conv.0.weight", missing)
    mlp = arrays.get("encoder.layers.0.fc1.weight", missing)
    if not convs or {x.ndim for x in (*convs, positions)} != {3} or mlp.ndim != 2:
        raise UserError(
            f"{path} has no HuBERT under 'model': its convolutions or layers are missing. "
            f"{_BASE_ONLY}."
        )
    hidden_size, group_width, position_kernel = positions.shape
    num_layers = len(list(_numbered(arrays, "encoder.layers.{}.fc1.weight")))
    _check_layer(path, feature_layer, num_layers)
    with naming(path):
        return HubertConfig(
            conv_dim=tuple(x.shape[0] for x in convs),
            conv_kernel=tuple(x.shape[2] for x in convs),
            conv_stride=_strides(model.get("conv_feature_layers", str | None), len(convs)),
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=model.get("encoder_attention_heads", int, hidden_size // 64),
            intermediate_size=mlp.shape[0],
            position_kernel=position_kernel,
            position_groups=hidden_size // group_width,
            feature_layer=feature_layer,
            normalize=task.get("normalize", bool, False),
        )


def _check_layer(path: str, feature_layer: int, num_layers: int) -> None:
    if feature_layer > num_layers > 0:
        raise UserError(
            f"{path} has {num_layers} layers; give --layer from 1 to {num_layers}, not"
            f" {feature_layer}."
        )


def _numbered(names: Mapping[str, Any], pattern: str) -> Iterator[str]:
    """The names "x.0", "x.1", ... up to the first that is missing; `pattern` is "x.{}"."""
    i = 0
    while pattern.format(i) in names:
        yield pattern.format(i)
        i += 1


def _strides(text: str | None, count: int) -> tuple[int, ...]:
    """ "[(512,10,5)] + [(512,3,2)] * 4" -> (5, 2, 2, 2, 2); None -> fairseq's default."""
    if text is None:
        return HubertConfig.conv_stride[:count]
    strides = []
    for group, times in re.findall(r"\[([^]]*)\]\s*(?:\*\s*(\d+))?", text):
        layers = re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)", group)
        strides += [int(stride) for stride in layers] * int(times or 1)
    if len(strides) != count:
        raise UserError(
            f"conv_feature_layers {text!r} does not describe the {count} convolutions of the"
            " checkpoint; options and weights don't belong together."
        )
    return tuple(strides)


# ---- Hugging Face --------------------------------------------------------------------------------

# Our field -> field of config.json. Both default to the base HuBERT.
_FIELDS = {
    "conv_dim": "conv_dim",
    "conv_kernel": "conv_kernel",
    "conv_stride": "conv_stride",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "layer_norm_eps": "layer_norm_eps",
}
# Values of config.json that a base HuBERT has; they are also the defaults of absent fields.
_EXPECTED = {
    "model_type": "hubert",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "conv_bias": False,
    "conv_pos_batch_norm": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
}

# Values of preprocessor_config.json that its feature extractor has, and the defaults.
_EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
}


def _read_hugging_face(folder: pathlib.Path, feature_layer: int) -> _Checkpoint:
    path = folder / "config.json"
    fields = Fields.read(path, "the config of a HuBERT of transformers")
    fields.check_values(_EXPECTED, _BASE_ONLY)
    kinds = annotations(HubertConfig)
    sizes: dict[str, Any] = {}
    for ours, theirs in _FIELDS.items():
        default = getattr(HubertConfig, ours)
        value = fields.get(theirs, kinds[ours], default, at_most=LARGEST_INT)
        sizes[ours] = tuple(value) if isinstance(value, list) else value
    _check_layer(fields.source, feature_layer, sizes["num_layers"])
    normalize = _normalizes(folder)
    with naming(path):
        config = HubertConfig(**sizes, feature_layer=feature_layer, normalize=normalize)
    source = weights.from_folder(folder, ("model.safetensors", "pytorch_model.bin"))
    # Models with a head hold the HuBERT's weights under this name.
    arrays = {name.removeprefix("hubert."): x for name, x in source.read_float32().items()}
    return _Checkpoint(config, weight_norm.fold(arrays), HUGGING_FACE, HUGGING_FACE_HEADS)


def _normalizes(folder: pathlib.Path) -> bool:
    """The `do_normalize` of the feature extractor beside the model; False if there is none."""
    path, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    if path.is_file():
        fields = Fields.read(path, "the config of a feature extractor")
    elif processor.is_file():
        # transformers 5 writes a processor's parts into one file.
        fields = Fields.read(processor, "the config of a processor").inner("feature_extractor")
        if not fields.values:
            return False
    else:
        return False
    fields.check_values(_EXTRACTOR, "only HuBERTs of 16 kHz audio can be converted")
    # The feature extractor's own default is to normalise.
    return fields.get("do_normalize", bool, True)
