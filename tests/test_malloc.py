"""A jitted step on a CPU reuses the memory of the previous step: the kernel clears no new pages."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# The temporary buffer has 4 rows^2 bytes.
PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from speechgpt_jax.malloc import keep_freed_memory

rows, *keep = sys.argv[1:]
if keep:
    keep_freed_memory()

@jax.jit
def step(x):
    return (x @ x.T) @ x

x = jnp.ones((int(rows), 8))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The median, because a small buffer may split the free memory, and the next step then needs more.
print(round(statistics.median(faults[-5:])))
"""


def faults(rows, *keep):
    """Page faults of one step in a new process, after a few warm-up steps."""
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
    # Buffers of 100 MB, and of 2.5 GB, more than a C int can count.
    assert faults(5_000) > 10_000
    assert faults(5_000, "keep") < 100
    assert faults(25_000, "keep") < 100
