"""Reads pickles of PyTorch and joblib without running code from them.

A pickle is a program that may call any function. These unpicklers call only functions that rebuild
tensors and arrays (`HARMLESS`). Objects of the libraries in `INERT`, which checkpoints often hold,
become empty objects that keep their state; every other name is refused.

This module serves as the `pickle_module` of `torch.load`: it has `Unpickler` and `load`.
"""

import io
import os
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from joblib import numpy_pickle_utils
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

from speechgpt_jax.errors import UserError

HARMLESS = {
    "_codecs": {"encode"},
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
        *("object", "set", "str", "tuple"),
    },
    "collections": {"OrderedDict"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "torch": {"Size"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
}
INERT = ("argparse", "enum", "examples", "fairseq", "hydra", "numpy.random", "omegaconf")
INERT += ("pathlib", "sklearn", "typing")


class Refused(UserError):
    """The file holds more than weights, such as a call that rebuilding them doesn't need."""


class Inert:
    """Stands for an object of a library that is not loaded; `state` holds its attributes."""

    state = None

    def __new__(cls, *args, **kwargs):
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class Array(NumpyArrayWrapper):
    """Header of an array in a joblib file; its numbers follow in the file."""

    def read_array(self, unpickler: NumpyUnpickler, ensure_native_byte_order: bool) -> Any:
        if self.dtype.hasobject:
            # joblib would read the objects with the pickle module's own unpickler.
            raise Refused("an array of Python objects is refused.")
        return super().read_array(unpickler, ensure_native_byte_order)


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _inert(module, name) or super().find_class(module, name)


class JoblibUnpickler(NumpyUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return Array
        return _inert(module, name) or super().find_class(module, name)


def load(file: io.BufferedIOBase, **kwargs) -> Any:
    """The object in an open file; the interface is that of `pickle.load`."""
    return Unpickler(file, **kwargs).load()


def load_torch(path: str | os.PathLike) -> Any:
    """The object that `torch.save` wrote; its tensors stay on disk until they are used.

    Raises:
      UserError: the file is missing or damaged, or would run code.
    """
    with _reading(path, "PyTorch"):
        is_zip = zipfile.is_zipfile(path)
        if is_zip and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(path).namelist()):
            raise Refused(
                "a TorchScript program is refused; save the model's state_dict with torch.save."
            )
        return torch.load(
            path,
            map_location="cpu",
            pickle_module=sys.modules[__name__],
            weights_only=False,
            mmap=is_zip,
        )


def load_joblib(path: str | os.PathLike) -> Any:
    """The object that `joblib.dump` wrote, compressed or not.

    Raises:
      UserError: the file is missing or damaged, would run code, or its compression can't be read.
    """
    with _reading(path, "joblib"), open(path, "rb") as file:
        _check_compression(path, file)
        # Decompresses by the file's first bytes: zlib, gzip, bz2, lzma, xz, lz4 or none.
        opened = numpy_pickle_utils._validate_fileobject_and_memmap(file, str(path))
        with opened as (unpacked, _):
            return JoblibUnpickler(str(path), unpacked, ensure_native_byte_order=True).load()


def _check_compression(path: str | os.PathLike, file: io.BufferedReader) -> None:
    compression = numpy_pickle_utils._detect_compressor(file)
    if compression == "compat":
        raise _Unreadable(
            f"{path} was written by a joblib before 0.10; load it there and dump it again with a"
            " newer one."
        )
    if compression == "lz4":
        try:
            import lz4.frame  # noqa: F401
        except ImportError as error:
            raise _Unreadable(
                f"{path} is compressed by LZ4, and that package is not installed; pip install lz4."
            ) from error


def _inert(module: str, name: str) -> type[Inert] | None:
    """`Inert` for a name of a known library, None for a harmless one.

    Raises:
      Refused: it is neither.
    """
    if name in HARMLESS.get(module, ()):
        return None
    if any(f"{module}.".startswith(f"{library}.") for library in INERT):
        return Inert
    raise Refused(
        f"it would run {module}.{name}, which is refused; save only the weights (a dict of tensors,"
        " or a k-means of scikit-learn) and convert that file."
    )


class _Unreadable(UserError):
    """A file that joblib can't read here; the message is complete."""


@contextmanager
def _reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Turns all exceptions of the unpicklers into UserErrors that name the file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no file {path}; expected a {kind} file.")
    try:
        yield
    except Refused as error:
        raise Refused(f"{path} holds more than weights: {error}") from error
    except _Unreadable:
        raise
    except Exception as error:  # Damaged bytes make an unpickler raise anything.
        problem = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is damaged or no {kind} file ({problem}); get it again."
        ) from error
