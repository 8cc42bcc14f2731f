"""CPU devices of one core each, for programs that run at once.

XLA cuts every product over all threads of a device, whatever `xla_cpu_multi_thread_eigen` says: of
two programs at once, each waits for the other's halves, and finds in no core's cache what it wrote.
A device with a single thread computes it in one go.
"""

import functools
import os

import jax
from jaxlib import xla_client

# Neither shall loops be cut.
OPTIONS = {"xla_cpu_multi_thread_eigen": False}


@functools.cache
def device(number: int) -> jax.Device:
    """The device of so many a number, another for each, made when it is first asked for."""
    before = os.environ.get("PJRT_NPROC")
    os.environ["PJRT_NPROC"] = "1"  # How many threads XLA gives it.
    try:
        return xla_client.make_cpu_client(asynchronous=False).devices()[0]
    finally:
        del os.environ["PJRT_NPROC"]
        if before is not None:
            os.environ["PJRT_NPROC"] = before
