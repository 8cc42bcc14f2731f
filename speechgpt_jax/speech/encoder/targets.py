"""Training data of a HuBERT: clips and a target for every frame, in files that are memory-mapped.

A folder, local or on gs://, holds all clips, and all their targets, one after the other:

    sound.npy        int16 [samples]
    clip_ends.npy    [clips]: where each clip ends in sound.npy
    targets.npy      cluster ids int16 [frames], or features float16 [frames, D]
    target_ends.npy  [clips]: where each clip's targets end in targets.npy
"""

import os

import numpy as np
from etils import epath

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.mapped_arrays import map_array, save_array


def save_targets(
    folder: str | os.PathLike, wavs: list[np.ndarray], targets: list[np.ndarray]
) -> None:
    """Writes clips, float [S] each, and their targets, [T] or [T, D] each."""
    arrays = {
        "sound": np.concatenate([(np.clip(wav, -1, 1) * 32767).astype(np.int16) for wav in wavs]),
        "clip_ends": np.cumsum([len(wav) for wav in wavs]),
        "targets": np.concatenate(targets),
        "target_ends": np.cumsum([len(rows) for rows in targets]),
    }
    for name, array in arrays.items():
        save_array(epath.Path(folder) / f"{name}.npy", array)


def load_targets(folder: str | os.PathLike) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clips int16 [S] and their targets [T] or [T, D], memory-mapped.

    Raises:
      UserError: a file is missing or damaged, or the four files do not belong together.
    """
    clips = _split(folder, "sound", "clip_ends")
    targets = _split(folder, "targets", "target_ends")
    if len(clips) != len(targets):
        raise UserError(
            f"{folder} has {len(clips)} clips but targets of {len(targets)}; make the folder again"
            " with tools.hubert_targets."
        )
    return clips, targets


def retimed(targets: np.ndarray, num_frames: int) -> np.ndarray:
    """Targets [T, ...] of a recording that is played faster or slower, stretched to [num_frames].

    [7, 8, 9], 6 -> [7, 7, 8, 8, 9, 9]
    """
    places = (np.arange(num_frames) + 0.5) * len(targets) / num_frames
    return targets[places.astype(int)]


def _split(folder, name: str, ends_name: str) -> list[np.ndarray]:
    array, ends = (_load(epath.Path(folder) / f"{n}.npy") for n in (name, ends_name))
    if ends.ndim != 1 or len(ends) == 0 or ends[-1] != len(array):
        raise UserError(
            f"{folder}: {name}.npy and {ends_name}.npy do not belong together; make the folder"
            " again with tools.hubert_targets."
        )
    return np.split(array, ends[:-1])


def _load(path: epath.Path) -> np.ndarray:
    try:
        return map_array(path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); expected a folder that tools.hubert_targets"
            " wrote."
        ) from error
