"""Several processes that train one model together: how they meet, and how they part.

    with connected(multihost=True):     # a TPU pod, GKE, SLURM
        train(...)

One that dies takes the others along, so that whoever launched them can start all of them again.
"""

import contextlib
import os
import sys

import jax

from speechgpt_jax.checkpoints import LOST_PROCESS
from speechgpt_jax.errors import UserError

# A process that was silent for so long is dead, and the others stop: within a minute.
HEARTBEAT_SECONDS = 30
# The first process may still draw a plot when the others are done.
SHUTDOWN_SECONDS = 60


@contextlib.contextmanager
def connected(
    multihost: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
):
    """Connects this process with the others of its run; alone, it does nothing.

    To be entered before JAX touches a device. An error inside ends the process at once: by leaving
    politely it would wait for the others, which wait for it in a collective operation.

    Args:
      multihost: find the others by what the TPU pod, GKE or SLURM says. Under GKE and SLURM this is
        known without being asked for.
      coordinator_address: HOST:PORT of process 0, where nobody else says it.
      num_processes, process_id: given with `coordinator_address`.

    Raises:
      UserError: the three are not given together, or the environment names no other processes.
    """
    explicit = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in explicit.items() if value is None]
    if not missing:
        _initialize(**explicit)
    elif len(missing) < len(explicit):
        raise UserError(f"{', '.join(missing)} must be given too: the three belong together.")
    elif multihost or scheduled_processes() > 1:
        _initialize()
    else:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(jax.distributed.shutdown)
        stack.enter_context(_leave_at_once())
        yield


def scheduled_processes() -> int:
    """How many processes the scheduler started for this run, where it says so: SLURM, GKE."""
    # SLURM_NTASKS alone says nothing: the shell that starts `srun` has it too.
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ["SLURM_NTASKS"])
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
    return slices * len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))


def _initialize(**explicit):
    try:
        jax.distributed.initialize(
            **explicit,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"the other processes can't be found: {error} On a TPU pod, GKE or under srun all is"
            " known; elsewhere give --coordinator_address, --num_processes and --process_id."
        ) from error


@contextlib.contextmanager
def _leave_at_once():
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, str):  # What `sys.exit` would print.
            _exit(stop.code)
        raise
    except LOST_PROCESS as error:
        cause, _, _ = str(error).partition("\n")
        _exit(
            f"Error: process {jax.process_index()} of {jax.process_count()} stops, for another one"
            " is gone or a device failed. Start all of them again: the same command goes on from"
            f" the last checkpoint. JAX says: {cause}"
        )
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _exit("")


def _exit(message: str):
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
