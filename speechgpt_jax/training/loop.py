"""The training loop, for anything that learns: the language model, HuBERT, the vocoder.

    state = fit(state, jax.jit(train_step, donate_argnums=0), batches, steps=1000,
                checkpoints=Checkpoints(output_dir), output_dir=output_dir)

`train_step(state, batch) -> (state, metrics)` is jitted; its metrics are scalars, or pairs (total,
weight) whose means over several steps are then exact. `batches` gives dicts of arrays and knows
where it stands.
"""

import collections
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import reached_preemption_sync_point

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.progress import Averages, MetricsLog, Progress, say

# The metric of a train step that may reject its batch: whether it did and left the state as it was.
REJECTED = "rejected"


class Batches(Protocol):
    """An endless iterator over batches.

    `state()` is the position after the last batch that was given, in parts that several processes
    may share out in another way when they go on; after `restore(positions)` the next batch is
    exactly the next one.
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
    output_dir,
    place_batch: Callable = jax.device_put,
    save_every: int = 1000,
    log_every: int = 10,
    patience: int = 0,
    profile_steps: tuple[int, int] | None = None,
    peak_flops: float | None = None,
    rate: str = "tokens",
    name: str = "training",
):
    """Trains up to `steps` steps, going on from the newest checkpoint if there is one.

    SIGTERM or Ctrl-C saves after the step under way and leaves by SystemExit (0 or 130); the same
    command goes on from there. Of several processes, one that gets SIGTERM is enough: all save
    after the same step and leave.

    A metric that is not finite raises a UserError naming the step and a file with its
    batch; a state after such a step is never saved. Batches that the step itself rejects (see
    `optimizer.Guard`) are named too and passed over, up to `patience` of them in a row.

    Args:
      state: the start, any pytree; a checkpoint of the same layout takes its place.
      train_step, batches: see above; the step may donate its state.
      steps: number of the last step, counted from 1.
      checkpoints: where states are saved.
      output_dir: where metrics, rejected batches and the profile are written.
      place_batch: puts a batch of host arrays on the devices.
      save_every, log_every: in steps.
      patience: so many rejected batches in a row don't stop the run.
      profile_steps: first and last step of a jax.profiler trace, written to `profile`.
      peak_flops: of all devices together, a second. With it, the metric `model_flops` is reported
        as `mfu`, the share of that peak.
      rate: the metric whose sum a second is reported.
      name: what the progress bar calls this run.

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
                raise UserError(f"the input ended after {step - 1} of {steps} steps: repeat it.")
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


def resume(state, batches: Batches, checkpoints: Checkpoints) -> tuple[Any, int]:
    """The newest checkpoint in place of `state`, or `state` itself; and the steps it has taken."""
    names = batches.state().keys()
    restored = checkpoints.restore_latest(state, names)
    if restored is None:
        return state, 0
    for array in jax.tree.leaves(state):
        # The caller may still hold it, and there may be no room for two.
        if isinstance(array, jax.Array):
            array.delete()
    if restored.input_positions.keys() == names:
        batches.restore(restored.input_positions)
    else:
        say(
            "The run had another number of readers (by default, of processes): its input starts"
            " from the beginning. Bind load_host_batches.num_readers to that number to go on"
            " exactly, or another seed to see the examples in another order than before."
        )
    say(f"Going on from step {restored.step} of {checkpoints.folder}.")
    return restored.state, restored.step


class Reporter:
    """Reads a step's metrics while the devices work on the next step, and reports their means.

    Read at once, they would leave the devices idle between two steps.
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

    def add(self, step: int, metrics: Mapping, batch: Mapping):
        self._unread.append((step, metrics, batch))
        if len(self._unread) > 1:
            self._read()

    def catch_up(self):
        """Waits for the last step and reads its metrics too."""
        while self._unread:
            self._read()

    def close(self):
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
        if self._last_read is not None:  # The first step compiles: its time says nothing.
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
    """Finds the steps that went wrong and keeps their batches.

    Args:
      output_dir: gets `rejected/step_<N>.npz`, one a process, with the rows of that process.
      patience: so many rejected batches in a row don't stop the run.
    """

    def __init__(self, output_dir, patience: int):
        self._folder = epath.Path(output_dir) / "rejected"
        self._patience = patience
        self._in_a_row = 0

    def accepts(self, step: int, metrics: Mapping, batch: Mapping) -> bool:
        """Whether all went well; UserError naming step and batch if the run must stop."""
        problem = _problem(metrics)
        if problem is None:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        file = self._save(step, batch)
        rejected = bool(metrics.get(REJECTED, False))
        if rejected and self._in_a_row <= self._patience:
            say(f"step {step}: {problem}; skipped. Its batch is in {file}.")
            return False
        raise UserError(
            f"step {step}: {problem}; nothing was saved since. Its batch is in {file}. Usual"
            " causes: the input, or too high a learning rate."
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
    """What is wrong with a step, or None."""
    if bad := [name for name, value in metrics.items() if not np.isfinite(value).all()]:
        return f"{', '.join(bad)} not finite"
    if metrics.get(REJECTED, False):
        total, weight = metrics["loss"]
        return f"loss {total / weight:.3f} far above its running mean"
    return None


@contextlib.contextmanager
def stop_signals():
    """A list that gets the first SIGTERM or SIGINT; the second one acts as usual.

    Of several processes, JAX itself hears SIGTERM and tells the others.
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


def leave(stop: signal.Signals, step: int, checkpoints: Checkpoints):
    """Ends the process: 0 for SIGTERM (a preemption went well), 130 for Ctrl-C as shells expect."""
    say(f"{stop.name}: step {step} is saved in {checkpoints.folder}.")
    say("The same command goes on from there.")
    raise SystemExit(130 if stop == signal.SIGINT else 0)
