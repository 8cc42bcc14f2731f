"""Programs run in parallel on a CPU: one per core, each on a device of its own.

XLA splits every matrix product over all threads of a device, whatever `xla_cpu_multi_thread_eigen`
says. Two programs on one device then wait for each other's halves and lose what they had in the
cores' caches. On a device with a single thread a program keeps one core to itself.
"""

import functools
import os
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxlib import xla_client

from speechgpt_jax import xla_options


class Parallelism(NamedTuple):
    """Number of programs that run at the same time, and the size of their batches.

    Attributes:
      num_workers: programs that run at the same time.
      rows: rows of frames in one program's batch.
    """

    num_workers: int
    rows: int


def backend_is_cpu() -> bool:
    """True if JAX computes on a CPU by default."""
    return jax.default_backend() == "cpu"


def parallelism() -> Parallelism:
    """One program of one row per core of a CPU; one program of several rows on an accelerator."""
    if not backend_is_cpu():
        return Parallelism(num_workers=1, rows=8)
    # Linux knows which of the cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Parallelism(num_workers=cores or 1, rows=1)


def compiler_options(dtype: DTypeLike, *, single_core: bool) -> dict[str, bool | str]:
    """XLA options for a program whose products are of `dtype`.

    Args:
      dtype: type of the factors of matrix products.
      single_core: the program runs on a device of `single_core_device`.
    """
    if not backend_is_cpu():
        return {}
    return xla_options.for_speech_on_cpu(jnp.dtype(dtype).name, single_core=single_core)


# Held while a device is created: that changes the environment of the whole process.
_CREATING = threading.Lock()


def single_core_device(number: int) -> jax.Device:
    """CPU device number `number` with a single thread, created on first use, in any thread."""
    with _CREATING:
        return _create_device(number)


@functools.cache
def _create_device(number: int) -> jax.Device:
    before = os.environ.get("PJRT_NPROC")
    os.environ["PJRT_NPROC"] = "1"  # The number of threads that XLA gives the device.
    try:
        return xla_client.make_cpu_client(asynchronous=False).devices()[0]
    finally:
        del os.environ["PJRT_NPROC"]
        if before is not None:
            os.environ["PJRT_NPROC"] = before
