"""Reads G.722, the 16 kHz telephone codec in which Debian packs Asterisk's prompts."""

import io

import av
import numpy as np

from speechgpt_jax import files
from speechgpt_jax.errors import UserError

G722_BYTES_PER_SECOND = 8000


def decode_g722(path: files.Path) -> np.ndarray:
    """float32 [samples] at 16 kHz of a raw .g722 file.

    Raises:
      UserError: the file can't be decoded.
    """
    data = io.BytesIO(files.read_bytes(path, "a G.722 recording"))
    try:
        with av.open(data, format="g722") as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{path} can't be read as G.722 ({error}); get it again.") from error
    if not frames:
        raise UserError(f"{path} holds no samples; expected a G.722 recording.")
    return np.concatenate(frames).astype(np.float32) / 2**15
