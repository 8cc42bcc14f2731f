"""Pickles of PyTorch and joblib, read without running them.

A pickle is a program that may call anything. These unpicklers call only what rebuilds tensors and
arrays. Objects of the libraries in `INERT`, which such files are full of, become empty shells that
keep their state; every other name is refused.

The module is what `torch.load` asks of a `pickle_module`: it has `Unpickler` and `load`.
"""

import os
import pickle
import sys
import zipfile

import torch
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
    """The pickle would call something that has nothing to do with weights."""


class Inert:
    """Stands for an object of a library that is not here; `state` is all it knows."""

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

    def append(self, value):
        pass

    def extend(self, values):
        pass


class Array(NumpyArrayWrapper):
    """An array within a joblib file, whose numbers follow in the file as they are."""

    def read_array(self, unpickler, ensure_native_byte_order):
        if self.dtype.hasobject:
            # joblib would read the objects with the pickle module's own unpickler.
            raise Refused("an array of Python objects is refused.")
        return super().read_array(unpickler, ensure_native_byte_order)


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return _inert(module, name) or super().find_class(module, name)


class JoblibUnpickler(NumpyUnpickler):
    def find_class(self, module, name):
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return Array
        return _inert(module, name) or super().find_class(module, name)


def load(file, **kwargs):
    return Unpickler(file, **kwargs).load()


def load_torch(path: str | os.PathLike):
    """What `torch.save` wrote; tensors stay on disk until they are used.

    Raises:
      UserError: it is damaged, or would run code.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(path).namelist()):
            raise Refused("a TorchScript program is refused.")
        return torch.load(
            path,
            map_location="cpu",
            pickle_module=sys.modules[__name__],
            weights_only=False,
            mmap=is_zip,
        )
    except Exception as error:
        raise _named(path, "PyTorch", error) from error


def load_joblib(path: str | os.PathLike):
    """What `joblib.dump` wrote without compression.

    Raises:
      UserError: it is damaged, or would run code.
    """
    try:
        with open(path, "rb") as file:
            return JoblibUnpickler(str(path), file, ensure_native_byte_order=True).load()
    except Exception as error:
        raise _named(path, "joblib", error) from error


def _inert(module, name):
    """The shell for an object of a known library, None for what is harmless; the rest raises."""
    if name in HARMLESS.get(module, ()):
        return None
    if any(f"{module}.".startswith(f"{library}.") for library in INERT):
        return Inert
    raise Refused(f"it would run {module}.{name}: refused.")


def _named(path, kind, error) -> UserError:
    if isinstance(error, Refused):
        return Refused(f"{path} holds more than weights: {error}")
    problem = str(error).partition("\n")[0]
    return UserError(f"{path} is missing, damaged or no {kind} file ({problem}); get it again.")
