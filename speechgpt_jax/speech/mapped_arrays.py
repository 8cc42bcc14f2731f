"""Arrays in .npy files that are read at random and may be larger than memory; local or on gs://."""

import numpy as np

from speechgpt_jax import files
from speechgpt_jax.local_copies import local_copy


def save_array(path: files.Path, array: np.ndarray) -> None:
    """Writes an array, whole or not at all."""
    with files.whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)


def map_array(path: files.Path) -> np.ndarray:
    """The array of a file, memory-mapped.

    A file on gs:// is first copied to the folder for temporary files. The copy is deleted as soon
    as it is mapped: it takes space until the process ends, in whatever way.

    Raises:
      UserError: it can't be copied.
      OSError, ValueError or EOFError: it is missing or damaged.
    """
    with local_copy(path) as local:
        return np.load(local, mmap_mode="r")
