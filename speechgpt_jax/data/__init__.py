"""SeqIO tasks and mixtures -> packed batches of this process.

TensorFlow is first imported here. GPUs are hidden from it, since it would take the memory that JAX
needs. During the import the file descriptor of stderr is redirected: TensorFlow's C++ code prints
messages about missing drivers at any log level.
"""

import contextlib
import os


@contextlib.contextmanager
def _silent_stderr():
    """Discards all output to file descriptor 2, that of C++ code included."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


# Packing needs no TensorFlow; modules that need it say so.
with _silent_stderr(), contextlib.suppress(ModuleNotFoundError):
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
