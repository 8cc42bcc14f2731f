"""Recordings that a manifest or a user names, each at least a frame long."""

import os

import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio

# Samples of one of HuBERT's frames (25 ms), and from one to the next (20 ms).
WINDOW, HOP = 400, 320
FRAMES_PER_SECOND = SAMPLE_RATE // HOP


def num_frames(samples: int) -> int:
    """Number of HuBERT's frames: 16000 samples -> 49."""
    return max(0, (samples - WINDOW) // HOP + 1)


def load_recording(path: str | os.PathLike, max_seconds: float | None = None) -> np.ndarray:
    """A recording of at least one of HuBERT's frames, float32 [samples] at 16 kHz.

    Raises:
      UserError: it is shorter, longer than `max_seconds`, or can't be read.
    """
    wav = load_audio(path, max_seconds)
    if not num_frames(len(wav)):
        raise UserError(f"{path} is shorter than a frame of 25 ms; give a longer one, or none.")
    return wav
