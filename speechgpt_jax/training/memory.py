"""Batches that can't fit in the memory of the devices, refused before their data is read."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import host_memory
from speechgpt_jax.models.llama_config import LlamaConfig

_REMEDY = "take a smaller batch_size, a larger accumulation, or a mesh of more devices"


def check_activations(
    model: LlamaConfig, rows: int, length: int, accumulation: int, mesh: Mesh
) -> None:
    """Raises a UserError if the inputs of all layers, which the backward pass needs, don't fit.

    A step takes more; `python -m speechgpt_jax.precompile` says how much.

    Args:
      model: its sizes.
      rows: rows of a batch that one process reads.
      length: tokens per row.
      accumulation: microbatches per step.
      mesh: mesh of the run.
    """
    rows *= sharding.process_share(mesh)[1]
    bytes_per_token = model.num_layers * model.hidden_size * np.dtype(model.dtype).itemsize
    needed = rows * length * bytes_per_token // accumulation
    memory = _device_memory()
    if needed > memory:
        raise UserError(
            f"batch_size {rows}, with {length} tokens in a row and accumulation {accumulation}: the"
            f" inputs of the {model.num_layers} layers alone would take {needed / 2**30:,.0f} GiB,"
            f" and the devices have {memory / 2**30:,.0f}; {_REMEDY}."
        )


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns JAX's error that a step doesn't fit in memory into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise UserError(f"a step doesn't fit in memory ({reason}): {_REMEDY}.") from error


def _device_memory() -> int:
    """Bytes of all devices together; those of CPUs share that of their computer."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    own = sum(filter(None, limits)) if all(limits) else host_memory()
    return own * jax.process_count()
