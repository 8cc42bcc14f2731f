"""A run packed into one file of parameters: small to copy, and nothing is executed to read it.

FOLDER/parameters.safetensors holds the arrays of a checkpoint's parameters under their names, and
the metadata of the checkpoint, as JSON, in its header. An array NAME that was packed as int8 has a
float32 scale for each row, NAME/scale, and is read as float32.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
from etils import epath

from speechgpt_jax import files
from speechgpt_jax.checkpoints.arrays import checksums
from speechgpt_jax.checkpoints.problems import Damaged, reading
from speechgpt_jax.errors import UserError
from speechgpt_jax.local_copies import local_copy

NAME = "parameters.safetensors"
_SCALE = "/scale"
_METADATA = "checkpoint"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}


def is_packed(folder: epath.Path) -> bool:
    """Whether `folder` is a packed run."""
    return (folder / NAME).exists()


def write(
    folder: epath.Path, arrays: Mapping[str, jax.Array], metadata: dict, dtype: str | None = None
) -> None:
    """Writes a packed run.

    Args:
      folder: folder of the packed run.
      arrays: arrays by their names in a checkpoint.
      metadata: metadata of the checkpoint.
      dtype: type of the stored arrays; None keeps theirs. "int8" makes vectors and norms float32.

    Raises:
      UserError: a value is too large for `dtype`, or the file can't be written.
    """
    if dtype == "int8":
        stored = dict(_rows_as_int8(arrays))
    else:
        stored = {name: x.astype(dtype or x.dtype) for name, x in arrays.items()}
    for name, x in stored.items() if dtype else ():
        if not bool(jnp.isfinite(x).all()):
            name = name.removesuffix(_SCALE)
            largest = jnp.abs(arrays[name]).max()
            raise UserError(f"{name} holds {largest:.3g}, too large for {dtype}; pack as float32.")
    read_back = {name: _restored(stored, name) for name in arrays}
    described = json.dumps(metadata | {"checksums": checksums(read_back)})
    data = safetensors.flax.save(stored, metadata={_METADATA: described})
    files.write_bytes(folder / NAME, data)


def _rows_as_int8(arrays: Mapping[str, jax.Array]) -> Iterator[tuple[str, jax.Array]]:
    """The arrays, each of those with int8 rows before its scales."""
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            yield name, x
            continue
        x = x.astype(jnp.float32)
        if x.ndim < 2 or "norm" in name:
            yield name, x
            continue
        scale = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True) / 127, 1e-12)
        yield name, jnp.round(x / scale).astype(jnp.int8)
        yield name + _SCALE, scale


def _restored(stored: Mapping[str, Any], name: str) -> np.ndarray:
    """An array as it is read."""
    x, scale = np.asarray(stored[name]), stored.get(name + _SCALE)
    return x if scale is None else x.astype(np.float32) * np.asarray(scale)


def read_metadata(folder: epath.Path) -> dict:
    """Metadata of the checkpoint."""
    with _opened(folder) as file:
        try:
            return json.loads((file.metadata() or {})[_METADATA])
        except (KeyError, ValueError) as error:
            raise Damaged(folder, f"{NAME} has no metadata of a checkpoint") from error


def shapes(folder: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all arrays, by name."""
    with _opened(folder) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: jax.ShapeDtypeStruct(
                x.get_shape(), "float32" if name + _SCALE in slices else _DTYPES[x.get_dtype()]
            )
            for name, x in slices.items()
            if not name.endswith(_SCALE)
        }


def read(folder: epath.Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Arrays by name, on the host."""
    with _opened(folder) as file:
        scales = {name + _SCALE for name in names} & set(file.keys())
        stored = {name: file.get_tensor(name) for name in (*names, *scales)}
    return {name: _restored(stored, name) for name in names}


@contextlib.contextmanager
def _opened(folder: epath.Path) -> Iterator[Any]:
    with (
        local_copy(folder / NAME) as local,
        reading(folder),
        safetensors.safe_open(local, framework="numpy") as file,
    ):
        yield file
