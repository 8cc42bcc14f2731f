"""Keeps a run on TPU VMs going: requests them again after a preemption, and restarts the run."""

import time
from collections.abc import Callable, Sequence

from speechgpt_jax import processes
from speechgpt_jax.errors import UserError
from speechgpt_jax.launch import tpu_vm
from speechgpt_jax.launch.command import STOPPED_EXIT_CODE
from speechgpt_jax.launch.tpu_vm import Pod, Request

# States of a request whose slices are gone for good.
GONE = ("FAILED", "SUSPENDED")


def watch(
    pod: Pod,
    request: Request,
    source: str,
    train_arguments: Sequence[str],
    *,
    max_restarts: int,
    seconds: float,
    log: Callable[[str], None] = print,
) -> None:
    """Returns when the run has finished on all hosts.

    It looks at the pod each time, and remembers nothing but the number of crashes: it may be
    stopped and started anew on any machine.

    Args:
      pod, request: the slices; requested if there are none, or if they were preempted.
      source: git URL of this repository.
      train_arguments: arguments of `speechgpt_jax.train`.
      max_restarts: restarts after crashes; those after preemptions don't count.
      seconds: seconds between two looks.
      log: called with a line at each change.

    Raises:
      UserError: the run has crashed too often, or gcloud fails.
    """
    crashes, before = 0, None
    is_counted = False  # The last crash, whose exit codes stay until the next start.
    while True:
        state = processes.output(tpu_vm.state(pod))
        state = state if state is None else state.strip() or "not requested"
        if state != before:
            log(f"{pod.name}: {state or 'Google Cloud does not answer'}")
            before = state
        if state in GONE:
            _run(tpu_vm.delete(pod))
        elif state == "not requested":
            _run(tpu_vm.create(pod, request))
        elif state == "ACTIVE":
            runs = tpu_vm.read_status(processes.output(tpu_vm.status(pod)) or "")
            codes = [int(run.rpartition(" ")[2]) for run in runs if "ended" in run]
            if runs and codes == [0] * len(runs):
                log(f"{pod.name}: the run has finished")
                return
            has_crashed = any(code not in (0, STOPPED_EXIT_CODE) for code in codes)
            if has_crashed and not is_counted:
                crashes, is_counted = crashes + 1, True
                if crashes > max_restarts:
                    raise UserError(
                        f"the run has crashed {crashes} times, the last time with exit codes"
                        f" {sorted(set(codes))}: see `launch_tpu_vm logs`; --max_restarts allows"
                        f" {max_restarts}."
                    )
            if runs and "run in progress" not in runs:
                log(f"{pod.name}: starting the run on {len(runs)} hosts")
                # If a host goes away meanwhile, the next look finds out.
                for words in (tpu_vm.setup(pod, source), tpu_vm.train(pod, train_arguments)):
                    if processes.run(words):
                        log(f"{pod.name}: that failed; trying again")
                        break
                else:
                    is_counted = False
        time.sleep(seconds)


def _run(words: Sequence[str]) -> None:
    code = processes.run(words)
    if code:
        raise UserError(f"{' '.join(words[:6])} ended with exit code {code}; its output is above.")
