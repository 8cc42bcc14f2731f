"""Reads G.722, the 16 kHz telephone codec in which Debian packs Asterisk's prompts."""

import os

import av
import numpy as np

from speechgpt_jax.errors import UserError

G722_BYTES_PER_SECOND = 8000


def decode_g722(path: str | os.PathLike) -> np.ndarray:
    """float32 [samples] at 16 kHz of a raw .g722 file.

    Raises:
      UserError: the file can't be decoded.
    """
    try:
        with av.open(os.fspath(path), format="g722") as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{path} can't be read as G.722 ({error}); get it again.") from error
    if not frames:
        raise UserError(f"{path} holds no samples; expected a G.722 recording.")
    return np.concatenate(frames).astype(np.float32) / 2**15
