"""The C library's allocator, told to keep the memory of a step for the next one."""

import ctypes
import logging
import sys

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
# -1: never trimmed, however much is free. The last: threads that come later share one heap, or each
# would grow one of its own.
OPTIONS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}

logger = logging.getLogger(__name__)


def keep_freed_memory():
    """On a CPU, makes glibc reuse freed buffers instead of returning them to the kernel.

    A jitted CPU step allocates its temporary buffer anew each time. By default glibc maps and
    unmaps it, and the kernel clears every page again. Peak memory rises a little. Must be called
    before JAX's first computation, and after `jax.distributed.initialize`.
    """
    # glibc keeps the main thread's memory only: computations must run there, not behind it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries (musl) have no such switch, or one that does nothing.
    if mallopt is None or not all(mallopt(*option) for option in OPTIONS.items()):
        logger.info("This C library's allocator can't be told to keep freed memory.")
