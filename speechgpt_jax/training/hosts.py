"""Several processes that train one model together: connecting them, and stopping all when one dies.

    with connected(multihost=True):     # a TPU pod, GKE, SLURM
        train(...)

If one of them dies the others stop, so that a scheduler can restart all of them.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from speechgpt_jax.checkpoints import RUNTIME_ERRORS
from speechgpt_jax.errors import UserError

# A process without a heartbeat for this long counts as dead, and the others stop.
HEARTBEAT_SECONDS = 30
# How long the processes wait for one another at the start.
CONNECT_SECONDS = 300
# How long the other processes wait at the end, while the first one draws the loss curves.
SHUTDOWN_SECONDS = 60
# The same for processes with shares of different length: a month.
UNLIMITED_SECONDS = 30 * 24 * 3600


@contextlib.contextmanager
def connected(
    multihost: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    independent: bool = False,
) -> Iterator[None]:
    """Connects this process with the others of its run; does nothing if there are no others.

    Enter it before JAX uses a device. If one dies or is stopped, JAX aborts the others with a
    message that names it, and they print the stack traces of all threads. An exception inside ends
    the process at once: an orderly exit would wait for the others, which wait for this process in a
    collective operation.

    Args:
      multihost: find the other processes of a TPU pod from its environment. Under GKE and SLURM
        they are always looked for.
      coordinator_address: HOST:PORT of process 0, if the environment does not name it.
      num_processes, process_id: required with `coordinator_address`.
      independent: the processes share nothing but the work: SIGTERM ends them as usual, and those
        that are ready wait for the others for as long as these take.

    Raises:
      UserError: the three are not given together, the environment names no other processes, or
        process 0 can't be reached or can't listen at its address.
    """
    explicit = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UserError(f"process_id {process_id} must be below num_processes {num_processes}.")
    missing = [name for name, value in explicit.items() if value is None]
    if not missing:
        host, port = _host_and_port(coordinator_address or "")
        if process_id:
            _wait_for_first_process(host, port, num_processes or 0)
        else:
            _check_free(port)
        _initialize(independent, **explicit)
    elif len(missing) < len(explicit):
        raise UserError(f"{', '.join(missing)} must be given too: the three belong together.")
    elif multihost or scheduled_processes() > 1:
        _initialize(independent)
    else:
        yield
        return
    if not faulthandler.is_enabled():
        # JAX aborts this process when another's heartbeat is missing: it leaves its stack traces.
        faulthandler.enable()
    with contextlib.ExitStack() as stack:
        stack.callback(jax.distributed.shutdown)
        stack.enter_context(_leave_at_once())
        yield


def scheduled_processes() -> int:
    """Number of processes that SLURM or GKE started for this run; 1 elsewhere."""
    # SLURM_NTASKS is not enough: the shell that calls `srun` has it too.
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ["SLURM_NTASKS"])
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
    return slices * len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address must be HOST:PORT of process 0, got {address!r}.")
    return host.strip("[]"), int(port)


def _wait_for_first_process(host: str, port: int, num_processes: int) -> None:
    """Waits until process 0 listens; without it JAX would abort this process."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 of {num_processes} doesn't listen at --coordinator_address="
                    f"{host}:{port} ({error.strerror or error}): give its address, and start all"
                    f" processes within {CONNECT_SECONDS} s."
                ) from error
        time.sleep(0.5)


def _check_free(port: int) -> None:
    """Raises a UserError if process 0 can't listen at a port; there JAX crashes now and then."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"process 0 can't listen at port {port} of --coordinator_address ({error.strerror}):"
            " give a free port of its host."
        ) from error


def _initialize(independent: bool, **explicit: Any) -> None:
    if independent:
        # JAX's own handler of SIGTERM waits for a loop that asks it.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=UNLIMITED_SECONDS if independent else SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"the other processes can't be found: {error} On a TPU pod, GKE or under srun"
            " the environment names them; elsewhere give --coordinator_address, --num_processes and"
            " --process_id."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the processes can't be connected ({reason}): process 0 must be able to listen at a"
            " port that all others reach."
        ) from error


@contextlib.contextmanager
def _leave_at_once() -> Iterator[None]:
    """Ends the process at an exception, after printing it, without waiting for the others."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, str):  # A message, which `sys.exit` would print.
            _exit(stop.code)
        raise
    except RUNTIME_ERRORS as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            sys.excepthook(*sys.exc_info())
            _exit("Error: the memory of a device is full; take a smaller batch, or a larger mesh.")
        cause, _, _ = str(error).partition("\n")
        _exit(
            f"Error: process {jax.process_index()} of {jax.process_count()} stops: another process"
            " is gone or a device failed. Restart all of them: the same command resumes from the"
            f" last checkpoint. JAX reports: {cause}"
        )
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _exit("")


def _exit(message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
