"""Weights in the files of other frameworks, read tensor by tensor."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np
import safetensors
import torch

from speechgpt_jax.conversion import pickles
from speechgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays somewhere on disk or in memory.

    Attributes:
      source: where they are, for messages.
      shapes: name -> shape.
      fetch: name -> array in the dtype it is stored in.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    fetch: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """The array; UserError if it holds a NaN or an infinity."""
        array = self.fetch(name)
        if not np.isfinite(array).all():
            raise UserError(f"{self.source}: {name} holds NaN or infinity; the file is no use.")
        return array


def from_arrays(source, arrays: Mapping[str, np.ndarray]) -> Weights:
    """Weights that are in memory."""
    return Weights(str(source), {n: x.shape for n, x in arrays.items()}, arrays.__getitem__)


def from_folder(folder: pathlib.Path, names: Iterable[str]) -> Weights:
    """The weights of a Hugging Face folder, in one file or in shards with an index.

    Args:
      folder: has one of `names` or, for shards, one of `names` + ".index.json".
      names: such as "model.safetensors" and "pytorch_model.bin"; the first one found is taken.

    Raises:
      UserError: a file is missing or damaged, or the index does not fit the shards.
    """
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _together(folder, [_open(folder / name)])
        if index.is_file():
            weight_map = read_json(index).get("weight_map", {})
            shards = [_open(folder / shard) for shard in sorted(set(weight_map.values()))]
            weights = _together(folder, shards)
            if lost := sorted(weight_map.keys() - weights.shapes.keys()):
                raise UserError(
                    f"{index} names {lost[0]}, but {folder / weight_map[lost[0]]} lacks it: index"
                    " and shards don't belong together."
                )
            return weights
    raise UserError(f"{folder} has no weights; expected one of {', '.join(names)}.")


def from_torch(source, tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Tensors that `pickles.load_torch` opened; UserError if they are something else."""
    if not (
        isinstance(tensors, Mapping) and all(isinstance(x, torch.Tensor) for x in tensors.values())
    ):
        raise UserError(f"{source} holds other things than named tensors.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Weights(str(source), shapes, lambda name: _to_numpy(tensors[name]))


def read_json(path: pathlib.Path) -> dict:
    """UserError where there is none or it is no JSON object."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is missing or no JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds {type(fields).__name__}; expected a JSON object.")
    return fields


def sha256(path: pathlib.Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error


def describe_sha256(path: pathlib.Path, published: Mapping[str, str]) -> str:
    """One line on whether `path` is one of the files {sha256: what it is}."""
    digest = sha256(path)
    return (
        f"{path.name}: sha256 {digest}, {published.get(digest, 'not a published file known here')}"
    )


def _open(path: pathlib.Path) -> Weights:
    if not path.is_file():
        raise UserError(f"{path} is missing; get all shards that the index names.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def _open_torch(path: pathlib.Path) -> Weights:
    def read():
        return from_torch(path, pickles.load_torch(path))

    # Mapped anew for each tensor: what was read before no longer counts as memory in use.
    return Weights(str(path), read().shapes, lambda name: read().fetch(name))


def _open_safetensors(path: pathlib.Path) -> Weights:
    with _safe_open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def fetch(name):
        # Opened anew, as PyTorch's are.
        with _safe_open(path) as file:
            return file.get_tensor(name)

    return Weights(str(path), shapes, fetch)


@contextlib.contextmanager
def _safe_open(path):
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again.") from error


def _together(folder, parts: list[Weights]) -> Weights:
    owner = {name: part for part in parts for name in part.shapes}
    shapes = {name: part.shapes[name] for name, part in owner.items()}
    return Weights(str(folder), shapes, lambda name: owner[name].fetch(name))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16 of its own.
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
