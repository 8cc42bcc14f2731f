"""Flags of commands that run as several processes; a main adopts them as its own."""

import contextlib

from absl import flags

from speechgpt_jax.arguments import at_least, define, host_and_port, positive_int

MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Join the other processes that the TPU pod, GKE or SLURM started."
)
COORDINATOR_ADDRESS = define(
    "coordinator_address",
    host_and_port,
    None,
    "HOST:PORT of process 0; only needed outside of TPU pods, GKE and SLURM.",
)
NUM_PROCESSES = define(
    "num_processes", positive_int, None, "Number of processes, with --coordinator_address."
)
PROCESS_ID = define(
    "process_id", at_least(0), None, "Index of this process, from 0, with --coordinator_address."
)
ALL = (MULTIHOST, COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)


def connected(*, independent: bool = False) -> contextlib.AbstractContextManager[None]:
    """Connects this process with the others that the flags or the environment name.

    Args:
      independent: as in `hosts.connected`.
    """
    from speechgpt_jax.training import hosts  # Loads JAX, which takes seconds.

    others = (MULTIHOST.value, COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
    return hosts.connected(*others, independent=independent)
