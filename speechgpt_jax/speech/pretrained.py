"""Folders of `config.json` and `model.safetensors`: saved HuBERTs and vocoders."""

import json
import os
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import nnx
from numpy.typing import DTypeLike

from speechgpt_jax import files
from speechgpt_jax.errors import UserError

Module = TypeVar("Module", bound=nnx.Module)


def save_model(
    folder: str | os.PathLike, model: nnx.Module, fields: dict, dtype: DTypeLike = np.float32
) -> None:
    """Writes the parameters as `dtype` (float16 halves the file), then `fields` as config.json.

    Raises:
      UserError: the folder can't be written, or a parameter does not fit in `dtype`.
    """
    folder = epath.Path(folder)
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    tensors = {}
    for path, value in flat:
        name = ".".join(map(str, path))
        with np.errstate(over="ignore"):
            tensors[name] = np.asarray(value[...]).astype(dtype)
        largest = np.abs(np.asarray(value[...])).max(initial=0)
        if np.isfinite(largest) and not np.isfinite(tensors[name]).all():
            raise UserError(
                f"{name} holds {largest:.3g}, too large for {np.dtype(dtype)}; save as float32."
            )
    files.write_bytes(folder / "model.safetensors", safetensors.numpy.save(tensors))
    files.write_text(folder / "config.json", json.dumps(fields, indent=2))


def load_fields(folder: str | os.PathLike) -> dict:
    """Fields of `folder/config.json`; UserError if it is missing or no JSON object."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; expected a folder of a saved model.")
    return files.read_json(path, "the configuration of a saved model")


def load_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; UserError if it is missing, damaged or of bfloat16."""
    try:
        return safetensors.numpy.load(epath.Path(path).read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); convert or copy it again."
        ) from error
    except KeyError as error:  # NumPy has no such type.
        raise UserError(
            f"{path} holds tensors of type {error}; save them as float32 or float16."
        ) from error


def load_model(folder: str | os.PathLike, build: Callable[[], Module]) -> Module:
    """Model of `build`'s structure with the saved parameters, as float32.

    Raises:
      UserError: the file is missing or damaged, its names or shapes are not the model's, or a
        tensor is not of a floating-point type.
    """
    path = epath.Path(folder) / "model.safetensors"
    tensors = load_tensors(path)
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = [(".".join(map(str, path)), path, value) for path, value in nnx.to_flat_state(state)]
    expected = {(name, value.shape) for name, _, value in flat}
    found = {(name, tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise UserError(
            f"{path} does not fit its config.json: expected {sorted(expected - found)[:4]}, found"
            f" {sorted(found - expected)[:4]}; convert or copy the folder again."
        )
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{path}: {name} is {tensor.dtype}; expected a floating-point type.")
    # Cast on the host: JAX would compile a program for every shape.
    loaded = [
        (path, value.replace(jnp.asarray(tensors[name].astype(np.float32))))
        for name, path, value in flat
    ]
    return nnx.merge(graph, nnx.from_flat_state(loaded))
