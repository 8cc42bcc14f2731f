"""Whisper tiny.en's encoder -> a HuBERT of `HubertConfig.whisper_tiny`, the start of a training.

All weights are Whisper's, but attention is limited to `attention_frames` on either side; a short
training makes up for the difference.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx
from rich.progress import track

from speechgpt_jax import files
from speechgpt_jax.conversion import key_table, weights
from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, save_hubert
from speechgpt_jax.speech.encoder.targets import load_targets
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures

# Number of clips to which the projection is fitted.
PROJECTION_CLIPS = 1500

Projection = tuple[np.ndarray, np.ndarray]  # kernel [D, E], bias [E]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}.scale", f"{theirs}/gamma", AS_IS),
        Row(f"{ours}.bias", f"{theirs}/beta", AS_IS),
    ]


def _linear(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}.kernel", f"{theirs}/weight"), Row(f"{ours}.bias", f"{theirs}/bias", AS_IS)]


_ATTENTION, _MLP = "encoder/layer_*/self_attention", "encoder/layer_*/ffn"

# CTranslate2's names, after `split_attention`; `layer_norm` and `projection` are added here.
TABLE = [
    *_linear("front_end.conv_layers.0", "encoder/conv1"),
    *_linear("front_end.conv_layers.1", "encoder/conv2"),
    *_norm("layers.*.layer_norm", f"{_ATTENTION}/layer_norm"),
    *_linear("layers.*.attention.q_proj", f"{_ATTENTION}/q_proj"),
    *_linear("layers.*.attention.k_proj", f"{_ATTENTION}/k_proj"),
    *_linear("layers.*.attention.v_proj", f"{_ATTENTION}/v_proj"),
    *_linear("layers.*.attention.out_proj", f"{_ATTENTION}/linear_1"),
    *_norm("layers.*.final_layer_norm", f"{_MLP}/layer_norm"),
    *_linear("layers.*.intermediate_dense", f"{_MLP}/linear_0"),
    *_linear("layers.*.output_dense", f"{_MLP}/linear_1"),
    *_norm("layer_norm", "layer_norm"),
    *_linear("projection", "projection"),
]
# Positions are computed; the teacher's features are standardised instead of Whisper's last norm.
IGNORED = (
    "encoder/num_heads",
    "encoder/position_encodings/encodings",
    "encoder/layer_norm/gamma",
    "encoder/layer_norm/beta",
)


def convert(out: str | pathlib.Path, targets: str | pathlib.Path) -> None:
    """Writes a HuBERT whose projection maps Whisper's features to `targets` by least squares.

    Args:
      out: folder for `config.json` and `model.safetensors`.
      targets: folder that tools.hubert_targets wrote.

    Raises:
      UserError: `out` holds a HuBERT already, or the targets have another size.
    """
    config = HubertConfig.whisper_tiny()
    files.refuse_existing(out, "config.json", "model.safetensors")
    clips, clip_targets = load_targets(targets)
    if clip_targets[0].shape[1:] != (config.projection_size,):
        raise UserError(
            f"{targets} has targets of {list(clip_targets[0].shape)} per clip; expected [frames,"
            f" {config.projection_size}]: call tools.hubert_targets with"
            f" --directions={config.projection_size}."
        )
    variables = WhisperFeatures(config.num_layers).variables
    bare = build(variables, dataclasses.replace(config, projection_size=None))
    projection = fit_projection(
        Speech2Unit(for_inference(bare), None).features, clips, clip_targets
    )
    with files.whole_folder(out) as folder:
        save_hubert(folder, build(variables, config, projection))


def build(
    variables: Mapping[str, np.ndarray],
    config: HubertConfig,
    projection: Projection | None = None,
) -> Hubert:
    """A HuBERT with the weights of Whisper's encoder.

    Args:
      variables: name in CTranslate2 -> array, as `read_ctranslate2` returns them.
      config: sizes; its `projection_size` needs a `projection`.
      projection: kernel [D, E] and bias [E].

    Raises:
      UserError: the sizes are not those of the variables.
    """
    arrays = split_attention({name: np.asarray(x) for name, x in variables.items()})
    arrays["layer_norm/gamma"] = np.ones(config.hidden_size, np.float32)
    arrays["layer_norm/beta"] = np.zeros(config.hidden_size, np.float32)
    if projection:
        kernel, arrays["projection/bias"] = projection
        arrays["projection/weight"] = kernel.T
    source = weights.from_arrays("Whisper's encoder", arrays)
    return key_table.load_module(lambda: Hubert(config, rngs=nnx.Rngs(0)), TABLE, source, IGNORED)


def split_attention(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ ".../self_attention/linear_0/weight" [3 D, D] -> ".../q_proj/weight" [D, D], k_proj, v_proj.

    Biases [3 D] likewise; other arrays are kept.
    """
    split = {}
    for name, array in arrays.items():
        if "self_attention/linear_0/" in name:
            for part, part_array in zip(("q_proj", "k_proj", "v_proj"), np.split(array, 3)):
                split[name.replace("linear_0", part)] = part_array
        else:
            split[name] = array
    return split


def fit_projection(
    features_of: Callable[[list[np.ndarray]], list[np.ndarray]],
    clips: list[np.ndarray],
    targets: list[np.ndarray],
) -> Projection:
    """Linear map from features to targets by least squares.

    Args:
      features_of: function from clips, float32 [samples] each, to features, [T, D] each.
      clips: int16 [samples] each.
      targets: [T, E] each.
    """
    x, y = [], []
    chosen = np.random.default_rng(0).permutation(len(clips))[:PROJECTION_CLIPS]
    for batch in track(np.array_split(chosen, -(-len(chosen) // 64)), description="features"):
        x += features_of([clips[i] / np.float32(32768) for i in batch])
        y += [np.asarray(targets[i], np.float32) for i in batch]
    x = np.concatenate(x)
    x = np.column_stack([x, np.ones(len(x), np.float32)])
    # The features of a frame sum to 0, so one direction is undetermined: rcond keeps it at 0.
    solution, *_ = np.linalg.lstsq(x, np.concatenate(y), rcond=1e-3)
    return solution[:-1], solution[-1]
