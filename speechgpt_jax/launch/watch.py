"""Keeps a run on TPU VMs going: requests them again after a preemption, and restarts the run."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from speechgpt_jax import processes
from speechgpt_jax.errors import UserError
from speechgpt_jax.launch import tpu_vm
from speechgpt_jax.launch.command import Command
from speechgpt_jax.launch.tpu_vm import HostRun, Pod, Request

# States of a request whose slices are gone for good.
GONE = ("FAILED", "SUSPENDED")


def watch(
    pod: Pod,
    request: Request,
    source: str,
    command: Command,
    *,
    max_restarts: int,
    max_failures: int,
    seconds: float,
    straggler_seconds: float,
    call_seconds: float,
    log: Callable[[str], None] = print,
) -> None:
    """Returns when the run of this command has finished on all hosts.

    It looks at the pod each time, and remembers only what it counts: it may be ended and started
    anew on any machine.

    Args:
      pod, request: the slices; requested if there are none, or if they were preempted.
      source: git URL of this repository.
      command: what runs on each host.
      max_restarts: restarts after crashes; those after preemptions don't count.
      max_failures: failures in a row of one gcloud command, or of the request, that end it.
      seconds: seconds between two looks.
      straggler_seconds: how long the run may last on some hosts after it has ended on others.
      call_seconds: after this time a gcloud command has failed.
      log: called with a line at each change and failure.

    Raises:
      UserError: the run has crashed too often, was stopped by `launch_tpu_vm stop`, or is that of
        other arguments; or gcloud or the request fails again and again.
    """
    gcloud = _Gcloud(pod, max_failures, call_seconds, log)
    run = _Run(pod, source, command, max_restarts, straggler_seconds, gcloud, log)
    before, was_active = None, False
    while True:
        state = gcloud.output("list", tpu_vm.state(pod))
        state = state if state is None else state.strip() or "not requested"
        if state not in (None, before):
            log(f"{pod.name}: {state}")
        if state in GONE:
            if state != before and not was_active:
                gcloud.failed("request", f"the request ended as {state}")
            was_active = False
            gcloud.run("delete", tpu_vm.delete(pod))
        elif state == "not requested":
            gcloud.run("create", tpu_vm.create(pod, request))
        elif state == "ACTIVE":
            gcloud.worked("request")
            was_active = True
            if run.has_finished():
                log(f"{pod.name}: the run has finished")
                return
        before = state
        time.sleep(seconds)


class _Gcloud:
    """Runs gcloud, and gives up when something has failed `max_failures` times in a row."""

    def __init__(
        self, pod: Pod, max_failures: int, call_seconds: float, log: Callable[[str], None]
    ):
        self._pod, self._max_failures, self._seconds = pod, max_failures, call_seconds
        self._log = log
        self._failures: Counter[str] = Counter()

    def run(self, step: str, words: Sequence[str]) -> bool:
        """Whether the command has worked."""
        code = processes.run(words, timeout=self._seconds)
        if code:
            self.failed(step, f"gcloud's {step} ended with {code}")
        else:
            self.worked(step)
        return not code

    def output(self, step: str, words: Sequence[str]) -> str | None:
        """Output of the command; None if it fails."""
        printed = processes.output(words, timeout=self._seconds)
        if printed is None:
            self.failed(step, f"gcloud's {step} failed")
        else:
            self.worked(step)
        return printed

    def worked(self, step: str) -> None:
        del self._failures[step]

    def failed(self, step: str, what: str) -> None:
        self._failures[step] += 1
        count = f"{self._failures[step]} of {self._max_failures} times in a row"
        self._log(f"{self._pod.name}: {what} ({count})")
        if self._failures[step] >= self._max_failures:
            raise UserError(
                f"{what}, {count}: the reason is above. A run that is in progress continues; the"
                " same command watches it again."
            )


class _Run:
    """The run of one command on the hosts of slices that are there."""

    def __init__(
        self,
        pod: Pod,
        source: str,
        command: Command,
        max_restarts: int,
        straggler_seconds: float,
        gcloud: _Gcloud,
        log: Callable[[str], None],
    ):
        self._pod, self._source, self._command = pod, source, command
        self._max_restarts, self._straggler_seconds = max_restarts, straggler_seconds
        self._gcloud, self._log = gcloud, log
        self._crashes = 0
        self._is_counted = False  # The last crash, whose exit codes stay until the next start.
        # False after `watch` was started on a stopped run, to resume it; None until the first look.
        self._heeds_stop: bool | None = None
        self._first_ended: float | None = None

    def has_finished(self) -> bool:
        """Looks at the hosts, starts the run where it doesn't run, and counts its crashes."""
        printed = self._gcloud.output("status", tpu_vm.status(self._pod))
        if printed is None:
            return False
        runs = self._of_this_command(tpu_vm.read_status(printed))
        if not runs:
            self._gcloud.failed("answer", f"no host answered, gcloud printed {printed.strip()!r}")
            return False
        self._gcloud.worked("answer")
        codes = [run.code for run in runs if run.code is not None]
        if codes == [0] * len(runs):
            return True
        is_stopped = any(run.is_stopped for run in runs)
        if self._heeds_stop is None:
            self._heeds_stop = not is_stopped
        is_stopped = is_stopped and self._heeds_stop
        if not is_stopped and any(
            code not in (0, self._command.stopped_exit_code) for code in codes
        ):
            self._count_crash(codes)
        if any(run.is_in_progress for run in runs):
            self._end_stragglers(runs, codes)
        elif is_stopped:
            raise UserError(
                f"{self._pod.name}: the run was stopped by `launch_tpu_vm stop`; the same command"
                " resumes it."
            )
        else:
            self._start(len(runs))
        return False

    def _of_this_command(self, runs: Sequence[HostRun]) -> list[HostRun]:
        """Runs of this command; a run that an earlier command left on a host counts as none."""
        for run in runs:
            if run.is_in_progress and run.command != self._command.digest:
                raise UserError(
                    f"{self._pod.name}: a run with other arguments is in progress; wait for its"
                    " end, or end it by `launch_tpu_vm stop`."
                )
        return [run if run.command == self._command.digest else HostRun("no run") for run in runs]

    def _count_crash(self, codes: Sequence[int]) -> None:
        if self._is_counted:
            return
        self._crashes, self._is_counted = self._crashes + 1, True
        if self._crashes > self._max_restarts:
            raise UserError(
                f"the run has crashed {self._crashes} times, the last time with exit codes"
                f" {sorted(set(codes))}: see `launch_tpu_vm logs`; --max_restarts allows"
                f" {self._max_restarts}."
            )

    def _end_stragglers(self, runs: Sequence[HostRun], codes: Sequence[int]) -> None:
        """Kills a run that has long ended on other hosts and so can't finish on the rest."""
        running = sum(run.is_in_progress for run in runs)
        if running == len(runs):
            self._first_ended = None
            return
        if self._first_ended is None:
            self._first_ended = time.monotonic()
        waited = time.monotonic() - self._first_ended
        if waited < self._straggler_seconds:
            return
        self._log(
            f"{self._pod.name}: the run has ended on {len(runs) - running} of {len(runs)} hosts"
            f" (exit codes {sorted(set(codes))}) and not on the others within"
            f" {waited:.0f} seconds: ending it there"
        )
        self._gcloud.run("kill", tpu_vm.kill(self._pod))
        self._first_ended = None

    def _start(self, hosts: int) -> None:
        self._log(f"{self._pod.name}: starting the run on {hosts} hosts")
        self._first_ended = None
        # If a host goes away meanwhile, the next look finds out.
        if self._gcloud.run("setup", tpu_vm.setup(self._pod, self._source)) and self._gcloud.run(
            "train", tpu_vm.train(self._pod, self._command)
        ):
            self._is_counted, self._heeds_stop = False, True
