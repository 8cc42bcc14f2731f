"""A jitted step on a CPU gets the memory of the step before, not pages that the kernel clears."""

import os
import subprocess
import sys

# The temporary buffer is of 4 rows^2 bytes.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from speechgpt_jax.training.host_memory import keep_freed_memory

rows, *keep = sys.argv[1:]
if keep:
    keep_freed_memory()

@jax.jit
def step(x):
    return (x @ x.T) @ x

x = jnp.ones((int(rows), 8))
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(rows, *keep):
    """Page faults of the last of six equal steps, in a process of its own."""
    return int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(rows), *keep],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def test_a_step_faults_in_no_pages():
    # 100 MB, and more than the 2 GiB that an int of C can name.
    assert faults(5_000) > 10_000
    assert faults(5_000, "keep") < 100
    assert faults(25_000, "keep") < 100
