"""The training loop of the language model, HuBERT and the vocoder.

    state = fit(state, jax.jit(train_step, donate_argnums=0), batches, steps=1000,
                checkpoints=Checkpoints(output_dir), output_dir=output_dir)

`train_step(state, batch) -> (state, metrics)` is jitted. A metric is a scalar, or a pair (total,
weight), whose mean over several steps is the sum of totals over the sum of weights. `batches`
yields dicts of arrays and can save and restore its position.
"""

import collections
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import reached_preemption_sync_point

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.progress import Averages, MetricsLog, Progress, print_once

# Metric of a train step that may reject its batch: true if it did and left the state unchanged.
REJECTED = "rejected"


class Batches(Protocol):
    """An endless iterator over batches.

    `state()` is the position after the last batch, in parts: when a run resumes on another number
    of processes, each part may be read by another process. After `restore(positions)` the next
    batch is the one that followed that position.
    """

    def __next__(self) -> Mapping[str, Any]: ...
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
    place_batch: Callable = jax.device_put,
    save_every: int = 1000,
    log_every: int = 10,
    patience: int = 0,
    profile_steps: tuple[int, int] | None = None,
    peak_flops: float | None = None,
    rate: str = "tokens",
    name: str = "training",
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
      place_batch: copies a batch of host arrays to the devices.
      save_every, log_every: in steps.
      patience: number of rejected batches in a row that don't stop the run.
      profile_steps: first and last step of a jax.profiler trace, written to `profile`.
      peak_flops: peak FLOP/s summed over all devices. With it, the metric `model_flops` is
        reported as `mfu`, the share of that peak.
      rate: name of the metric that is also reported per second.
      name: title of the progress bar.

    Returns:
      The state after the last step.
    """
    state, first_step = resume(state, batches, checkpoints)
    profile_first, profile_last = profile_steps or (0, 0)  # Step 0 is never run.
    if profile_steps and not first_step < profile_first <= profile_last <= steps:
        raise UserError(
            f"profile_steps {profile_steps} must be steps of this run: {first_step + 1} to {steps}."
        )
    stopping = False
    with (
        contextlib.closing(MetricsLog(output_dir, first_step)) as log,
        contextlib.closing(Progress(name, first_step, steps, rate)) as progress,
        contextlib.closing(
            Reporter(log, progress, Review(output_dir, patience), rate, log_every, peak_flops)
        ) as reporter,
        stop_signals() as received,
    ):
        for step in range(first_step + 1, steps + 1):
            batch = next(batches, None)
            if batch is None:
                raise UserError(
                    f"the input ended after {step - 1} of {steps} steps: make it repeat, or train"
                    " fewer steps."
                )
            if step == profile_first:
                jax.profiler.start_trace(str(epath.Path(output_dir) / "profile"))
            state, metrics = train_step(state, place_batch(batch))
            reporter.add(step, metrics, batch)
            if step == profile_last:
                reporter.catch_up()
                jax.profiler.stop_trace()
            checkpoints.check()
            stopping = bool(received) or reached_preemption_sync_point(step)
            if step % save_every == 0 or step == steps or stopping:
                reporter.catch_up()
                checkpoints.save(step, state, batches.state())
            if stopping:
                break
    checkpoints.wait()
    if stopping:
        leave(received[0] if received else signal.SIGTERM, step, checkpoints)
    return state


def resume(state: Any, batches: Batches, checkpoints: Checkpoints) -> tuple[Any, int]:
    """State and step of the newest checkpoint; `state` and 0 if there is none."""
    names = batches.state().keys()
    restored = checkpoints.restore_latest(state, names)
    if restored is None:
        return state, 0
    for array in jax.tree.leaves(state):
        # The caller may still hold a reference, and there may be no memory for two states.
        if isinstance(array, jax.Array):
            array.delete()
    if restored.input_positions.keys() == names:
        batches.restore(restored.input_positions)
    else:
        print_once(
            "The run had another number of readers (by default, of processes): its input starts"
            " from the beginning. Bind load_host_batches.num_readers to that number to continue"
            " with the next batch, or another seed to get the examples in another order."
        )
    print_once(f"Resuming from step {restored.step} of {checkpoints.folder}.")
    return restored.state, restored.step


class Reporter:
    """Reads a step's metrics while the devices work on the next step, and reports their means.

    Reading them at once would leave the devices idle between two steps.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        review: "Review",
        rate: str,
        log_every: int,
        peak_flops: float | None,
    ):
        self._log, self._progress, self._review = log, progress, review
        self._rate, self._log_every, self._peak_flops = rate, log_every, peak_flops
        self._unread = []
        self._averages = Averages()
        self._timed = collections.Counter()
        self._last_read: float | None = None

    def add(self, step: int, metrics: Mapping, batch: Mapping) -> None:
        """Takes the metrics of a step and its batch on the host."""
        self._unread.append((step, metrics, batch))
        if len(self._unread) > 1:
            self._read()

    def catch_up(self) -> None:
        """Waits for the last step and reads its metrics too."""
        while self._unread:
            self._read()

    def close(self) -> None:
        """Reports the steps since the last report."""
        if self._averages:
            self._report()

    def _read(self):
        self._step, metrics, batch = self._unread.pop(0)
        metrics = jax.device_get(metrics)
        self._time(metrics)
        if self._review.accepts(self._step, metrics, batch):
            self._averages.add({k: v for k, v in metrics.items() if k != REJECTED})
        if self._step % self._log_every == 0 and self._averages:
            self._report()

    def _time(self, metrics):
        now = time.perf_counter()
        if self._last_read is not None:  # The first step includes compilation.
            amounts = {
                name: float(metrics[name])
                for name in (self._rate, "model_flops")
                if name in metrics
            }
            self._timed.update({"steps": 1, "elapsed": now - self._last_read, **amounts})
        self._last_read = now

    def _report(self):
        means = self._averages.means()
        if self._timed:
            seconds = self._timed["elapsed"]
            means[f"{self._rate}_per_second"] = self._timed[self._rate] / seconds
            means["seconds_per_step"] = seconds / self._timed["steps"]
            if self._peak_flops:
                means["mfu"] = self._timed["model_flops"] / seconds / self._peak_flops
        self._log.write(self._step, means)
        self._progress.report(self._step, means)
        self._averages, self._timed = Averages(), collections.Counter()


class Review:
    """Finds the steps whose metrics are bad and saves their batches.

    Args:
      output_dir: gets `rejected/step_<N>.npz`, one per process, with the rows of that process.
      patience: number of rejected batches in a row that don't stop the run.
    """

    def __init__(self, output_dir: str | os.PathLike, patience: int):
        self._folder = epath.Path(output_dir) / "rejected"
        self._patience = patience
        self._in_a_row = 0

    def accepts(self, step: int, metrics: Mapping, batch: Mapping) -> bool:
        """True if the step is good, False if its batch was skipped.

        Raises:
          UserError: the run must stop; names the step and the file with its batch.
        """
        problem = _problem(metrics)
        if problem is None:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        file = self._save(step, batch)
        rejected = bool(metrics.get(REJECTED, False))
        if rejected and self._in_a_row <= self._patience:
            print_once(f"step {step}: {problem}; skipped. Its batch is in {file}.")
            return False
        raise UserError(
            f"step {step}: {problem}; the state after it is not saved. Its batch is in {file}."
            " Usual causes: the input, or too high a learning rate."
        )

    def _save(self, step, batch):
        name = f"step_{step}.npz"
        if jax.process_count() > 1:
            name = f"step_{step}_process_{jax.process_index()}.npz"
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("wb") as file:
            np.savez_compressed(file, **batch)
        return self._folder / name


def _problem(metrics: Mapping) -> str | None:
    """Description of what is wrong with a step, or None."""
    if bad := [name for name, value in metrics.items() if not np.isfinite(value).all()]:
        return f"{', '.join(bad)} not finite"
    if metrics.get(REJECTED, False):
        total, weight = metrics["loss"]
        return f"loss {total / weight:.3f} far above its running mean"
    return None


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """A list to which the first SIGTERM or SIGINT is appended; the second one acts as usual.

    With several processes the list stays empty: JAX itself handles SIGTERM and informs the others.
    """
    received = []

    def remember(number, _):
        received.append(signal.Signals(number))
        for stop, handler in previous.items():
            signal.signal(stop, handler)

    stops = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    previous = {stop: signal.signal(stop, remember) for stop in stops}
    try:
        yield received
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def leave(stop: signal.Signals, step: int, checkpoints: Checkpoints) -> NoReturn:
    """Exits with 0 after SIGTERM (a preemption was handled), 130 after Ctrl-C as shells expect."""
    print_once(f"{stop.name}: step {step} is saved in {checkpoints.folder}.")
    print_once("The same command resumes from there.")
    raise SystemExit(130 if stop == signal.SIGINT else 0)
