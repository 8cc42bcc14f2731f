"""Settings of glibc's allocator that keep freed memory for the next train step or batch."""

import ctypes
import logging
import sys

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
OPTIONS = {
    M_MMAP_MAX: 0,  # Large buffers come from the heap too.
    M_TRIM_THRESHOLD: -1,  # The heap never shrinks.
    M_ARENA_MAX: 1,  # New threads share the heaps that exist; by default each grows its own.
}

logger = logging.getLogger(__name__)


def keep_freed_memory() -> None:
    """On a CPU, makes glibc reuse freed buffers instead of returning them to the kernel.

    A jitted CPU step allocates its temporary buffer anew each time. By default glibc maps and
    unmaps it, and the kernel clears every page again. Peak memory rises a little. Must be called
    before JAX's first computation, before the threads start that compute, and after
    `jax.distributed.initialize`.

    Buffers of any size are kept in the main thread; in another thread those below 64 MB, and larger
    ones only if it shares the main thread's heap.
    """
    # JAX's own threads have other heaps, so each computation runs in the thread that calls it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries have no mallopt (musl), or one that does nothing.
    if mallopt is None or not all(mallopt(*option) for option in OPTIONS.items()):
        logger.info("This C library has no setting that keeps freed memory.")
