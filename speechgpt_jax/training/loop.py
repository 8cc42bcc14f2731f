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

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.training.host_memory import keep_freed_memory
from speechgpt_jax.training.progress import Averages, MetricsLog, Progress


class Batches(Protocol):
    """An endless iterator over batches.

    `state()` is the position after the last batch that was given; after `restore(position)` the
    next batch is exactly the next one.
    """

    def __next__(self) -> Mapping[str, Any]: ...
    def state(self) -> bytes: ...
    def restore(self, position: bytes) -> None: ...


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
    rate: str = "tokens",
    name: str = "training",
):
    """Trains up to `steps` steps, going on from the newest checkpoint if there is one.

    SIGTERM or Ctrl-C saves after the step under way and leaves by SystemExit (0 or 130); the same
    command goes on from there. A metric that is not finite raises FloatingPointError naming the
    step; a state after such a step is never saved.

    Args:
      state: the start, any pytree; a checkpoint of the same layout takes its place.
      train_step, batches: see above; the step may donate its state.
      steps: number of the last step, counted from 1.
      checkpoints: where states are saved.
      output_dir: where metrics are written.
      place_batch: puts a batch of host arrays on the devices.
      save_every, log_every: in steps.
      rate: the metric whose sum a second is reported.
      name: what the progress bar calls this run.

    Returns:
      The state after the last step.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    state, first_step = resume(state, batches, checkpoints)
    stopping = False
    with (
        contextlib.closing(MetricsLog(output_dir, first_step)) as log,
        contextlib.closing(Progress(name, first_step, steps, rate)) as progress,
        contextlib.closing(Reporter(log, progress, rate, log_every)) as reporter,
        stop_signals() as received,
    ):
        for step in range(first_step + 1, steps + 1):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the input ended after {step - 1} of {steps} steps: repeat it.")
            state, metrics = train_step(state, place_batch(batch))
            reporter.add(step, metrics)
            stopping = bool(received)
            if step % save_every == 0 or step == steps or stopping:
                reporter.catch_up()
                checkpoints.save(step, state, batches.state())
            if stopping:
                break
    checkpoints.wait()
    if stopping:
        leave(received[0], step, checkpoints)
    return state


def resume(state, batches: Batches, checkpoints: Checkpoints) -> tuple[Any, int]:
    """The newest checkpoint in place of `state`, or `state` itself; and the steps it has taken."""
    restored = checkpoints.restore_latest(state)
    if restored is None:
        return state, 0
    for array in jax.tree.leaves(state):
        # The caller may still hold it, and there may be no room for two.
        if isinstance(array, jax.Array):
            array.delete()
    if restored.input_position is None:
        print("The run had another number of processes: its input starts from the beginning.")
    else:
        batches.restore(restored.input_position)
    print(f"Going on from step {restored.step} of {checkpoints.folder}.", flush=True)
    return restored.state, restored.step


class Reporter:
    """Reads a step's metrics while the devices work on the next step, and reports their means.

    Read at once, they would leave the devices idle between two steps.
    """

    def __init__(self, log: MetricsLog, progress: Progress, rate: str, log_every: int):
        self._log, self._progress = log, progress
        self._rate, self._log_every = rate, log_every
        self._unread = []
        self._averages = Averages()
        self._timed = collections.Counter()
        self._last_read = None

    def add(self, step: int, metrics: Mapping):
        self._unread.append((step, metrics))
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
        self._step, metrics = self._unread.pop(0)
        metrics = jax.device_get(metrics)
        require_finite(self._step, metrics)
        self._averages.add(metrics)
        now = time.perf_counter()
        if self._last_read is not None:  # The first step compiles: its time says nothing.
            amount = float(metrics[self._rate])
            self._timed.update(steps=1, seconds=now - self._last_read, amount=amount)
        self._last_read = now
        if self._step % self._log_every == 0:
            self._report()

    def _report(self):
        means = self._averages.means()
        if self._timed:
            means[f"{self._rate}_per_second"] = self._timed["amount"] / self._timed["seconds"]
            means["seconds_per_step"] = self._timed["seconds"] / self._timed["steps"]
        self._log.write(self._step, means)
        self._progress.report(self._step, means)
        self._averages, self._timed = Averages(), collections.Counter()


def require_finite(step: int, metrics: Mapping):
    """FloatingPointError naming the step and the metrics that are NaN or infinite."""
    bad = [name for name, value in metrics.items() if not np.isfinite(value).all()]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} not finite; nothing was saved since. Usual causes: the"
            " input, or too high a learning rate."
        )


@contextlib.contextmanager
def stop_signals():
    """A list that gets the first SIGTERM or SIGINT; the second one acts as usual."""
    received = []

    def remember(number, _):
        received.append(signal.Signals(number))
        for stop, handler in previous.items():
            signal.signal(stop, handler)

    previous = {stop: signal.signal(stop, remember) for stop in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def leave(stop: signal.Signals, step: int, checkpoints: Checkpoints):
    """Ends the process: 0 for SIGTERM (a preemption went well), 130 for Ctrl-C as shells expect."""
    print(f"{stop.name}: step {step} is saved in {checkpoints.folder}.")
    print("The same command goes on from there.", flush=True)
    raise SystemExit(130 if stop == signal.SIGINT else 0)
