"""From SeqIO tasks and mixtures to packed batches of this host.

TensorFlow is first imported here. It only reads data, so no GPU is visible to it: it would take the
memory that JAX needs. What its C++ side says of missing drivers meanwhile is thrown away; it heeds
no log level.
"""

import contextlib
import os


@contextlib.contextmanager
def _silent_stderr():
    """Nothing reaches the file descriptor 2, not even from C++."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


with _silent_stderr():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
