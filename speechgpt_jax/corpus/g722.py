"""Recordings in G.722, as Debian's Asterisk prompts are packed."""

import pathlib

import numpy as np

G722_BYTES_PER_SECOND = 8000


def decode_g722(path: pathlib.Path) -> np.ndarray:
    """float32 [samples] at 16 kHz."""
    import av  # comes with the recogniser of the test extra

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 2**15
