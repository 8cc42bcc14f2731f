"""Unit HiFi-GAN of fairseq (CodeHiFiGAN) -> our folder of config.json and model.safetensors."""

import os
import pathlib

from flax import nnx

from speechgpt_jax import files
from speechgpt_jax.conversion import key_table, pickles, weight_norm, weights
from speechgpt_jax.conversion.key_table import AS_IS, TRANSPOSED_CONV, Row
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.vocoder.config import VocoderConfig
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder


def _conv(ours: str, theirs: str, layout: key_table.Layout = key_table.REVERSED) -> list[Row]:
    return [
        Row(f"{ours}.kernel", f"{theirs}.weight", layout),
        Row(f"{ours}.bias", f"{theirs}.bias", AS_IS),
    ]


def _norm(name: str) -> list[Row]:
    ours, theirs = f"duration_predictor.{name}", f"dur_predictor.{name}"
    return [
        Row(f"{ours}.scale", f"{theirs}.weight", AS_IS),
        Row(f"{ours}.bias", f"{theirs}.bias", AS_IS),
    ]


FAIRSEQ = [
    Row("code_embedding.embedding", "dict.weight", AS_IS),
    Row("speaker_embedding.embedding", "spkr.weight", AS_IS),
    *_conv("generator.conv_pre", "conv_pre"),
    *_conv("generator.ups.*", "ups.*", TRANSPOSED_CONV),
    *_conv("generator.resblocks.*.convs1.*", "resblocks.*.convs1.*"),
    *_conv("generator.resblocks.*.convs2.*", "resblocks.*.convs2.*"),
    *_conv("generator.conv_post", "conv_post"),
    *_conv("duration_predictor.conv1", "dur_predictor.conv1.0"),
    *_norm("ln1"),
    *_conv("duration_predictor.conv2", "dur_predictor.conv2.0"),
    *_norm("ln2"),
    *_conv("duration_predictor.proj", "dur_predictor.proj"),
]


def convert(
    checkpoint: str | os.PathLike, config_file: str | os.PathLike, out: str | os.PathLike
) -> UnitVocoder:
    """Converts a checkpoint (g_*) and its config.json to the folder `out`; returns the vocoder.

    Writes `config.json` and `model.safetensors`. Weight norm is folded; no code from the pickle is
    run.

    Raises:
      UserError: the checkpoint is damaged or refused, or doesn't fit its config.
    """
    checkpoint = pathlib.Path(checkpoint)
    files.refuse_existing(out, "config.json", "model.safetensors")
    fields = files.read_json(config_file, "the vocoder's config.json")
    config = VocoderConfig.from_json(fields, str(config_file))
    saved = pickles.load_torch(checkpoint)
    if not (isinstance(saved, dict) and isinstance(saved.get("generator"), dict)):
        raise UserError(f"{checkpoint} has no weights under 'generator'; expected fairseq's g_*.")
    arrays = weights.from_torch(checkpoint, saved["generator"]).read_float32()
    source = weights.from_arrays(checkpoint, weight_norm.fold(arrays))
    vocoder = key_table.load_module(lambda: UnitVocoder(config, rngs=nnx.Rngs(0)), FAIRSEQ, source)
    with files.whole_folder(out) as folder:
        vocoder.save_pretrained(folder)
    return vocoder
