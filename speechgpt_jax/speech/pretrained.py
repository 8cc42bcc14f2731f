"""Folders of `config.json` and `model.safetensors`: how the models of this room are kept."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from speechgpt_jax.errors import UserError

Module = TypeVar("Module", bound=nnx.Module)


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def save_model(folder: str | os.PathLike, model: nnx.Module, fields: dict, dtype=np.float32):
    """Writes the parameters as `dtype` (float16 halves the file), then `fields` as config.json."""
    folder = pathlib.Path(folder)
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    tensors = {".".join(map(str, path)): np.asarray(value[...], dtype) for path, value in flat}
    write_whole(folder / "model.safetensors", safetensors.numpy.save(tensors))
    write_whole(folder / "config.json", json.dumps(fields, indent=2).encode())


def load_fields(folder: str | os.PathLike) -> dict:
    """The fields of `folder/config.json`; UserError where there is none."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; expected a folder of a saved model.")
    return json.loads(path.read_text())


def load_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of one file; UserError where it is missing or damaged."""
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); convert or copy it again."
        ) from error


def load_model(folder: str | os.PathLike, build: Callable[[], Module]) -> Module:
    """What `build` makes, holding the saved parameters as float32.

    Raises:
      UserError: names or shapes in the file are not those of the model.
    """
    path = pathlib.Path(folder) / "model.safetensors"
    tensors = load_tensors(path)
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = [(".".join(map(str, path)), path, value) for path, value in nnx.to_flat_state(state)]
    wanted = {(name, value.shape) for name, _, value in flat}
    wrong = sorted(wanted ^ {(name, tensor.shape) for name, tensor in tensors.items()})
    if wrong:
        raise UserError(f"{path} does not fit its config.json; they differ in {wrong[:4]}.")
    loaded = [
        (path, value.replace(jnp.asarray(tensors[name], jnp.float32))) for name, path, value in flat
    ]
    return nnx.merge(graph, nnx.from_flat_state(loaded))
