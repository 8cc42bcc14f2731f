"""Recordings that a manifest names, each at least a frame long."""

import os

import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.mfcc import num_frames


def load_recording(path: str | os.PathLike, max_seconds: float | None = None) -> np.ndarray:
    """A recording of at least one of HuBERT's frames, float32 [samples] at 16 kHz.

    Raises:
      UserError: it is shorter, longer than `max_seconds`, or can't be read.
    """
    wav = load_audio(path, max_seconds)
    if not num_frames(len(wav)):
        raise UserError(f"{path} is shorter than a frame of 25 ms; leave it out of the manifest.")
    return wav
