"""Reads and writes sound: every array here is float32 mono at 16 kHz, in [-1, 1]."""

import os
import pathlib
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from speechgpt_jax.errors import UserError

SAMPLE_RATE = 16_000


def load_audio(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """Reads wav, flac, mp3 or ogg of any sample rate and channel count.

    Channels are averaged, then the sound is resampled (soxr, high quality).

    Args:
      source: a path, or an open binary file.

    Returns:
      float32 [samples], mono, 16 kHz. At least one sample.

    Raises:
      UserError: the file is missing, empty, not audio, or holds NaN or infinite samples.
    """
    name = getattr(source, "name", source)
    if isinstance(source, str | os.PathLike) and not pathlib.Path(source).is_file():
        raise UserError(f"No audio file at {name}; expected a wav, flac, mp3 or ogg file.")
    try:
        wav, rate = soundfile.read(source, dtype="float32", always_2d=True)  # [samples, channels]
    except (soundfile.LibsndfileError, TypeError) as error:
        raise UserError(f"{name} is not readable as wav, flac, mp3 or ogg: {error}") from error
    if len(wav) == 0:
        raise UserError(f"{name} holds no samples; expected a recording.")
    if not np.isfinite(wav).all():
        raise UserError(f"{name} holds NaN or infinite samples; expected values in [-1, 1].")
    mono = wav.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def save_audio(path: str | os.PathLike, wav: np.ndarray) -> None:
    """Writes float32 [samples] at 16 kHz as 16-bit PCM; the suffix names the format.

    The file appears whole or not at all.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    soundfile.write(part, np.clip(wav, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16")
    os.replace(part, path)
