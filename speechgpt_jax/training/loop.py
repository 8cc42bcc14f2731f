"""The training loop of the language model, HuBERT and the vocoder.

    state = fit(state, jax.jit(train_step, donate_argnums=0), batches, steps=1000,
                checkpoints=Checkpoints(output_dir), output_dir=output_dir, save_every=100)

`train_step(state, batch) -> (state, metrics)` is jitted. A metric is a scalar, or a pair (total,
weight), whose mean over several steps is the sum of totals over the sum of weights. `batches`
yields dicts of arrays and can save and restore its position.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import (
    broadcast_one_to_all,
    reached_preemption_sync_point,
)

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.local_copies import written_locally
from speechgpt_jax.training.phases import COMPILE, EVALUATE, INPUT, RESTORE, SAVE, STEP, Phases
from speechgpt_jax.training.progress import (
    MetricsLog,
    Progress,
    check_run_folder,
    duration_text,
    print_once,
)
from speechgpt_jax.training.reporter import Reporter
from speechgpt_jax.training.review import Review
from speechgpt_jax.training.signals import leave, stop_signals
from speechgpt_jax.training.weights_and_biases import WandbRun

# Steps between two reports.
LOG_EVERY = 10


class Batches(Protocol):
    """An endless iterator over batches.

    `state()` is the position after the last batch, one entry per name in `position_names`: when a
    run resumes on another number of processes, each entry may be read by another process. After
    `restore(positions)` the next batch is the one that followed that position.
    """

    def __next__(self) -> Mapping[str, Any]: ...
    @property
    def position_names(self) -> Collection[str]: ...
    def state(self) -> dict[str, bytes]: ...
    def restore(self, positions: Mapping[str, bytes]) -> None: ...


def fit(
    state: Any,
    train_step: Callable,
    batches: Batches,
    *,
    steps: int,
    checkpoints: Checkpoints,
    output_dir: str | os.PathLike,
    save_every: int,
    place_batch: Callable = jax.device_put,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    save_minutes: float | None = None,
    log_every: int = LOG_EVERY,
    patience: int = 0,
    profile_steps: tuple[int, int] | None = None,
    prometheus_file: str | None = None,
    start_wandb: Callable[[], WandbRun] | None = None,
    peak_flops: float | None = None,
    rate: str = "tokens",
    name: str = "training",
    phases: Phases | None = None,
    describe: Callable[[], None] | None = None,
) -> Any:
    """Trains up to `steps` steps, resuming from the newest checkpoint if there is one.

    At SIGTERM or Ctrl-C the current step is finished and saved, and SystemExit (0 or 130) is
    raised; the same command resumes from there. If any of several processes gets SIGTERM, all save
    after the same step and exit.

    A metric that is not finite raises a UserError that names the step and a file with its batch;
    the state after such a step is never saved. Batches that the step itself rejects (see
    `optimizer.Guard`) are reported and skipped, up to `patience` of them in a row.

    Args:
      state: the initial state, any pytree; a checkpoint of the same structure replaces it.
      train_step, batches: described in the module docstring; the step may donate its state.
      steps: number of the last step, counted from 1.
      checkpoints: where states are saved.
      output_dir: where metrics, rejected batches and the profile are written.
      save_every: steps from one checkpoint to the next.
      place_batch: copies a batch of host arrays to the devices.
      evaluate: state -> metrics, which are logged and saved with a checkpoint of the same step.
      evaluate_every: steps between two evaluations; the last step is evaluated too. None: none are.
      log_every: steps from one line of metrics to the next.
      save_minutes: minutes after which a checkpoint is saved too, at the next step that is logged.
      patience: number of rejected batches in a row that don't stop the run.
      profile_steps: first and last step of a jax.profiler trace, written to `profile`.
      prometheus_file: gets the newest metrics for Prometheus's node exporter.
      start_wandb: makes a run of Weights & Biases, which gets the metrics too.
      peak_flops: peak FLOP/s summed over all devices. With it, the metric `model_flops` is
        reported as `mfu`, the share of that peak.
      rate: name of the metric that is also reported per second.
      name: title of the progress bar.
      phases: records what the run is doing; for a watchdog around the call.
      describe: writes what the run's folder holds besides, when it is sure that its checkpoints are
        those of this run.

    Returns:
      The state after the last step.
    """
    check_run_folder(output_dir)
    check_profile_steps(profile_steps, checkpoints.latest_step(), steps)
    phases = phases or Phases()
    phases.enter(RESTORE)
    state, first_step = resume(state, batches, checkpoints)
    if describe:
        describe()
    phases.finish_step(first_step)
    clock = SaveClock(save_minutes, log_every)
    profile_first, profile_last = profile_steps or (0, 0)  # Step 0 is never run.
    stopping, metrics = False, None
    with (
        contextlib.closing(MetricsLog(output_dir, first_step, prometheus_file, start_wandb)) as log,
        contextlib.closing(Progress(name, first_step, steps, rate)) as progress,
        contextlib.closing(
            Reporter(
                log, progress, Review(output_dir, patience), phases, rate, log_every, peak_flops
            )
        ) as reporter,
        stop_signals() as received,
        contextlib.ExitStack() as profile,  # Closed by a signal too.
    ):
        for step in range(first_step + 1, steps + 1):
            phases.enter(INPUT)
            batch = next(batches, None)
            if batch is None:
                raise UserError(
                    f"the input ended after {step - 1} of {steps} steps: make it repeat, or train"
                    " fewer steps."
                )
            if not is_computed(metrics):  # The devices didn't wait for the batch.
                phases.rename(STEP)
            if step == profile_first:
                profile.enter_context(trace(epath.Path(output_dir) / "profile"))
            phases.enter(COMPILE if step == first_step + 1 else STEP)
            state, metrics = train_step(state, place_batch(batch))
            phases.enter(STEP)
            reporter.add(step, metrics, batch)
            phases.finish_step(step)
            if step == profile_last:
                reporter.catch_up()
                profile.close()
            checkpoints.check()
            # JAX counts the steps of this process: after a SIGTERM before the first step it expects
            # step 1.
            stopping = bool(received) or reached_preemption_sync_point(step - first_step)
            scores = None
            if evaluate and evaluate_every and (step % evaluate_every == 0 or step == steps):
                reporter.catch_up()
                phases.enter(EVALUATE)
                scores = evaluate(state)
                reporter.report_scores(step, scores)
            due = step % save_every == 0 or clock.is_due(step)
            if due or step == steps or stopping:
                reporter.catch_up()
                phases.enter(SAVE)
                log.flush()
                checkpoints.save(step, state, batches.state(), scores)
                clock.reset()
            if stopping:
                break
        phases.enter(SAVE)
        checkpoints.wait()
    print_once(summary(phases, first_step))
    if stopping:
        leave(received[0] if received else signal.SIGTERM, step, checkpoints)
    return state


def check_profile_steps(
    profile_steps: tuple[int, int] | None, latest_step: int | None, steps: int
) -> None:
    """Raises a UserError unless a run that resumes after `latest_step` takes all these steps."""
    first = (latest_step or 0) + 1
    if profile_steps and not first <= profile_steps[0] <= profile_steps[1] <= steps:
        raise UserError(
            f"profile_steps {profile_steps} must be steps of this run: {first} to {steps}."
        )


@contextlib.contextmanager
def trace(folder: epath.Path) -> Iterator[None]:
    """Writes a jax.profiler trace of the block to `folder`."""
    with written_locally(folder) as local:
        jax.profiler.start_trace(str(local))
        try:
            yield
        finally:
            jax.profiler.stop_trace()


def resume(state: Any, batches: Batches, checkpoints: Checkpoints) -> tuple[Any, int]:
    """State and step of the newest checkpoint; `state` and 0 if there is none.

    The arrays of `state` are deleted before those of a checkpoint are read: there may be no memory
    for two states, and the caller may still hold a reference.
    """
    if checkpoints.latest_step() is None:
        return state, 0
    names = set(batches.position_names)
    targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    for array in jax.tree.leaves(state):
        array.delete()
    restored = checkpoints.restore_latest(targets, names)
    assert restored is not None, f"{checkpoints.folder} has lost its checkpoints"
    if restored.input_positions.keys() == names:
        batches.restore(restored.input_positions)
    else:
        print_once(
            "The run had another number of readers (by default, of processes), or was saved by an"
            " earlier version: its input starts from the beginning. Bind"
            " load_host_batches.num_readers to that number to continue with the next batch, or"
            " another seed to get the examples in another order."
        )
    print_once(f"Resuming from step {restored.step} of {checkpoints.folder}.")
    return restored.state, restored.step


class SaveClock:
    """Tells when a checkpoint is due by time; all processes follow the clock of the first.

    Args:
      minutes: minutes between two saves; None: never due.
      every: the clock is read at steps that are multiples of this.
    """

    def __init__(self, minutes: float | None, every: int):
        self._seconds, self._every = None if minutes is None else 60 * minutes, every
        self.reset()

    def reset(self) -> None:
        """Starts anew, after a save."""
        self._saved = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`."""
        if self._seconds is None or step % self._every:
            return False
        due = np.bool_(time.monotonic() - self._saved >= self._seconds)
        return bool(due if jax.process_count() == 1 else broadcast_one_to_all(due))


def is_computed(arrays: Any) -> bool:
    """Whether all arrays of a tree have their values; those of a running step don't have them."""
    return all(x.is_ready() for x in jax.tree.leaves(arrays) if hasattr(x, "is_ready"))


def summary(phases: Phases, first_step: int) -> str:
    """One line: steps, time, and the share of each phase, the largest first."""
    if phases.step == first_step:
        return f"All {first_step} steps are done; nothing is left to train."
    shares = ", ".join(f"{name} {share:.1%}" for name, share in phases.shares().items())
    seconds = duration_text(time.monotonic() - phases.began)
    return f"Steps {first_step + 1} to {phases.step} in {seconds}: {shares}."
