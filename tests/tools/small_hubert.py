"""Ears that hear nothing of meaning, but fast."""

import dataclasses
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import nnx

from speechgpt_jax.speech.hubert import Hubert, HubertConfig
from speechgpt_jax.speech.speech2unit import save_hubert

NUM_UNITS = 200
CONFIG = dataclasses.replace(
    HubertConfig.tiny(),
    conv_dim=(8,) * 7,
    hidden_size=32,
    num_layers=1,
    intermediate_size=32,
    feature_layer=1,
)


def save_small_hubert(folder: Path) -> None:
    """A HuBERT of random weights with random centroids, as `Speech2Unit.from_pretrained` reads."""
    save_hubert(folder, Hubert(CONFIG, rngs=nnx.Rngs(0)))
    centroids = np.random.default_rng(0).normal(size=(NUM_UNITS, CONFIG.hidden_size))
    tensors = {"cluster_centers": centroids.astype(np.float32)}
    safetensors.numpy.save_file(tensors, folder / "kmeans.safetensors")
