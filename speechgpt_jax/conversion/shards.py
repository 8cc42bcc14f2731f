"""Writes weights in Hugging Face's layout: one safetensors file, or shards and their index."""

import json
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from speechgpt_jax.local_copies import written_locally

# A shard is written as soon as it has this size.
SHARD_BYTES = 2**29


def write(folder: epath.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes model.safetensors, or shards of about SHARD_BYTES and their index.

    Raises:
      OSError: a file can't be written, for example because the disk is full.
    """
    paths, names = [], []
    total = 0
    for shard in _shards(tensors):
        paths.append(folder / f"shard{len(paths)}.safetensors")
        names.append(list(shard))
        total += _size(shard)
        write_file(paths[-1], shard)
    weight_map = {}
    for i, (path, members) in enumerate(zip(paths, names, strict=True), 1):
        final = f"model-{i:05}-of-{len(paths):05}" if len(paths) > 1 else "model"
        path.rename(folder / f"{final}.safetensors")
        weight_map |= dict.fromkeys(members, f"{final}.safetensors")
    if len(paths) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_file(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file; raises OSError where it can't be written."""
    try:
        with written_locally(path) as local:
            safetensors.numpy.save_file(dict(tensors), local, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def write_json(path: epath.Path, fields: Mapping) -> None:
    """Writes indented JSON, as Hugging Face does."""
    path.write_text(json.dumps(fields, indent=2) + "\n")


def _shards(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterable[dict[str, np.ndarray]]:
    shard = {}
    for name, tensor in tensors:
        shard[name] = tensor
        if _size(shard) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _size(shard: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in shard.values())
