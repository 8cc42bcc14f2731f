"""Weights of other frameworks, read tensor by tensor."""

import contextlib
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
import torch

from speechgpt_jax.conversion import pickles
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields

# Dtypes of weights that are not quantised.
FLOATS = ("float64", "float32", "float16", "bfloat16")
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Endings of names of quantised weights and scales (GPTQ, AWQ, bitsandbytes, ...).
_QUANTIZED = ("qweight", "qzeros", "SCB", "absmax", "quant_map", "weight_scale", "weight_scale_inv")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays on disk or in memory.

    Attributes:
      source: file or folder, for messages.
      shapes: name -> shape.
      dtypes: name -> stored dtype, such as "bfloat16" or "I8".
      fetch: name -> array in its stored dtype.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    fetch: Callable[[str], np.ndarray]

    def dtype(self, name: str) -> np.dtype:
        """The dtype of the array that `read` returns: float32 at most, as in JAX."""
        stored = self.dtypes[name]
        return np.dtype("float32" if stored == "float64" else stored)

    def read(self, name: str) -> np.ndarray:
        """The array; a UserError if it holds NaN, infinity or numbers too large for float32."""
        array = self.fetch(name)
        if array.dtype == np.float64:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f"{self.source}: {name} holds NaN, infinity or numbers too large for {array.dtype};"
                " get the file again, or take an earlier checkpoint."
            )
        return array

    def read_float32(self) -> dict[str, np.ndarray]:
        """All arrays as float32; a UserError as by `read` and `check_floats`."""
        self.check_floats(self.shapes)
        return {name: self.read(name).astype(np.float32) for name in self.shapes}

    def check_layers(self, prefix: str, expected: int) -> None:
        """Raises a UserError unless the names "PREFIX0...", "PREFIX1..." are of `expected` layers.

        To be called before the model is built, which takes long if a damaged file names very many.
        """
        inner = [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]
        found = len({name.partition(".")[0] for name in inner})
        if not found:
            first = min(self.shapes, default="nothing")
            raise UserError(
                f"{self.source} has no weights called {prefix}*; the first is called {first}:"
                " rename them as in transformers' checkpoints (torch's DistributedDataParallel, for"
                " example, puts 'module.' in front)."
            )
        if found != expected:
            raise UserError(
                f"{self.source} has the weights of {found} layers, its config says {expected}: take"
                " both from the same checkpoint."
            )

    def check_floats(self, names: Iterable[str]) -> None:
        """Raises a UserError if one of `names` is quantised or holds no numbers like weights."""
        for name in names:
            if re.match("bool|complex|c64", self.dtypes.get(name, ""), re.IGNORECASE):
                raise UserError(
                    f"{self.source}: {name} is {self.dtypes[name]}; expected one of"
                    f" {', '.join(FLOATS)}: get the file again."
                )
        codes = [name for name in self.shapes if name.endswith(_QUANTIZED)]
        codes += [name for name in names if self.dtypes.get(name, FLOATS[0]) not in FLOATS]
        if codes:
            raise UserError(
                f"{self.source}: {codes[0]} ({self.dtypes[codes[0]]}) is part of quantised weights;"
                " load the model in transformers, call `model.dequantize()` and `save_pretrained`,"
                " and convert that folder."
            )


def from_arrays(source: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Weights:
    """Weights in memory."""
    shapes = {name: x.shape for name, x in arrays.items()}
    dtypes = {name: str(x.dtype) for name, x in arrays.items()}
    return Weights(str(source), shapes, dtypes, arrays.__getitem__)


def from_folder(folder: pathlib.Path, names: Iterable[str]) -> Weights:
    """The weights of a Hugging Face folder, in one file or in shards with an index.

    Args:
      folder: has one of `names` or, for shards, one of `names` + ".index.json".
      names: such as "model.safetensors" and "pytorch_model.bin"; the first that exists is read.

    Raises:
      UserError: a file is missing or damaged, or the index does not fit the shards.
    """
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _together(folder, [_open(folder / name)])
        if index.is_file():
            fields = Fields.read(index, "an index of shards")
            weight_map = fields.require("weight_map", Mapping[str, str])
            shards = {name: _open(folder / name) for name in sorted(set(weight_map.values()))}
            for name, shard in sorted(weight_map.items()):
                if name not in shards[shard].shapes:
                    raise UserError(
                        f"{index} names {name}, but {folder / shard} lacks it: index and shards"
                        " don't belong together."
                    )
            # A shard may hold tensors that the index takes from another one.
            named = {name: shards[shard] for name, shard in weight_map.items()}
            return _together(folder, [*shards.values()], named)
    raise UserError(f"{folder} has no weights; expected one of {', '.join(names)}.")


def from_torch(source: str | pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Weights that `pickles.load_torch` read.

    Raises:
      UserError: they are not named tensors, or one repeats its numbers (`torch.Tensor.expand`), and
        few bytes of a file could fill the memory.
    """
    if not (
        isinstance(tensors, Mapping)
        and all(isinstance(n, str) and isinstance(x, torch.Tensor) for n, x in tensors.items())
    ):
        raise UserError(
            f"{source} holds other objects than named tensors; expected a state_dict saved by"
            " torch.save."
        )
    for name, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{source}: {name} of shape {tuple(tensor.shape)} repeats fewer numbers; save"
                " tensor.contiguous()."
            )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return Weights(str(source), shapes, dtypes, lambda name: _to_numpy(tensors[name]))


def sha256(path: pathlib.Path) -> str:
    """Hexadecimal digest of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error


def describe_sha256(path: pathlib.Path, published: Mapping[str, str]) -> str:
    """One line with the digest of `path` and its entry in `published`, sha256 -> description."""
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

    opened = read()
    # Mapped again for each tensor, so that tensors read before take no memory.
    return dataclasses.replace(opened, fetch=lambda name: read().fetch(name))


def _open_safetensors(path: pathlib.Path) -> Weights:
    with _safe_open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
        stored = {name: x.get_dtype() for name, x in slices.items()}
    dtypes = {name: _SAFETENSORS_DTYPES.get(dtype, dtype) for name, dtype in stored.items()}

    def fetch(name):
        # Opened again for each tensor, as in `_open_torch`.
        with _safe_open(path) as file:
            return file.get_tensor(name)

    return Weights(str(path), shapes, dtypes, fetch)


@contextlib.contextmanager
def _safe_open(path: pathlib.Path) -> Iterator[safetensors.safe_open]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again.") from error


def _together(
    folder: pathlib.Path, parts: list[Weights], named: Mapping[str, Weights] | None = None
) -> Weights:
    """The tensors of all parts; `named` says whose is taken of those that several have."""
    owner = {name: part for part in parts for name in part.shapes} | dict(named or {})
    shapes = {name: part.shapes[name] for name, part in owner.items()}
    dtypes = {name: part.dtypes[name] for name, part in owner.items()}
    return Weights(str(folder), shapes, dtypes, lambda name: owner[name].fetch(name))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16 of its own.
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
