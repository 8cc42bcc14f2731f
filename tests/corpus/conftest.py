"""A text-to-speech command and a HuBERT for tests: fast, but their output has no meaning."""

import shlex
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import save_hubert

NUM_UNITS = 200

# One tone per word, lower for speakers with longer names; the text is written beside the wav.
VOICE = """
import pathlib, sys
import numpy as np, soundfile
wav, speaker, text = sys.argv[1:]
if "unspeakable" in text:
    sys.exit("no such word")
pathlib.Path(wav).with_suffix(".json").write_text(text)
pitch = [(200 + 40 * len(word)) / len(speaker) for word in text.split()]
tones = [np.sin(2 * np.pi * hz * np.arange(4000) / 16000) for hz in pitch]
soundfile.write(wav, 0.3 * np.concatenate(tones), 16000)
"""


@pytest.fixture(scope="session")
def voice(tmp_path_factory):
    """The template of a speech command."""
    script = tmp_path_factory.mktemp("voice") / "voice.py"
    script.write_text(VOICE)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{wav}} {{speaker}} {{text}}"


@pytest.fixture(scope="session")
def small_hubert(tmp_path_factory):
    """Folder of a HuBERT of random weights, with random centroids."""
    folder = tmp_path_factory.mktemp("hubert")
    config = HubertConfig(
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 8),
        conv_stride=(5, 8, 8),
        hidden_size=32,
        num_layers=1,
        num_heads=4,
        intermediate_size=32,
        position_kernel=32,
        feature_layer=1,
    )
    save_hubert(folder, Hubert(config, rngs=nnx.Rngs(0)))
    centroids = np.random.default_rng(0).normal(size=(NUM_UNITS, 32)).astype(np.float32)
    safetensors.numpy.save_file({"cluster_centers": centroids}, folder / "kmeans.safetensors")
    return folder
