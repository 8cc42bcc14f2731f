"""Recordings of Beam's workers, read in threads while others are encoded."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from speechgpt_jax import files
from speechgpt_jax.corpus.beam_files import FAILURES, FileSystems, absolute
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import load_audio

Item = TypeVar("Item")
Result = TypeVar("Result")
SoundOrReason = np.ndarray | str  # float32 [samples] at 16 kHz, or why there is none


def load(path: str) -> SoundOrReason:
    """float32 [samples] at 16 kHz, or why the file can't be read.

    Raises:
      UserError: a remote file system fails, which may pass; Beam tries again.
    """
    if not files.is_remote(path) and not os.path.isfile(path):
        if not os.path.exists(path):
            return f"No audio file at {path}; expected a recording"
        # A pipe or a device could be read without end.
        return f"{path} is a folder, a pipe or a device; expected a file"
    try:
        with FileSystems.open(absolute(path)) as file:
            source = io.BytesIO(file.read())
    except (ValueError, *FAILURES) as error:
        is_failure = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if files.is_remote(path) and is_failure:
            raise UserError(f"{path} can't be read: {error}.") from error
        return " ".join(str(error).split())
    source.name = path
    try:
        return load_audio(source)
    except UserError as error:
        return " ".join(str(error).split())


def in_advance(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 8, ahead: int = 16
) -> Iterator[Result]:
    """`map(function, items)` in threads, which work up to `ahead` items in advance."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
