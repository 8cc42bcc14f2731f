"""Metrics of training steps: read while the devices work, averaged, timed and reported."""

import collections
import time
from collections.abc import Mapping

import jax

from speechgpt_jax.training.phases import INPUT, STEP, Phases
from speechgpt_jax.training.progress import Averages, MetricsLog, Progress
from speechgpt_jax.training.review import REJECTED, Review

# Names of the shares of two phases; those of the others are called "save_share" and so on.
NAMES = {STEP: "goodput", INPUT: "input_wait"}


class Reporter:
    """Reads a step's metrics while the devices work on the next step, and reports their means.

    Reading them at once would leave the devices idle between two steps.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        review: Review,
        phases: Phases,
        rate: str,
        log_every: int,
        peak_flops: float | None,
    ):
        self._log, self._progress, self._review = log, progress, review
        self._phases = phases
        self._rate, self._log_every, self._peak_flops = rate, log_every, peak_flops
        self._unread = []
        self._averages = Averages()
        self._timed = collections.Counter()
        self._last_read: float | None = None
        self._slowest = 0.0

    def add(self, step: int, metrics: Mapping, batch: Mapping) -> None:
        """Takes the metrics of a step and its batch on the host."""
        self._unread.append((step, metrics, batch))
        # A first step is read at once: the steps after it are timed from its end.
        if len(self._unread) > 1 or self._last_read is None:
            self._read()

    def catch_up(self) -> None:
        """Waits for the last step and reads its metrics too."""
        while self._unread:
            self._read()

    def report_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Logs the metrics of an evaluation, whose time counts for no step."""
        self._log.write(step, scores)
        self._progress.report(step, scores)
        self._last_read = None

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
            seconds = now - self._last_read
            self._timed.update({"steps": 1, "elapsed": seconds, **amounts})
            self._slowest = max(self._slowest, seconds)
        self._last_read = now

    def _report(self):
        means = self._averages.means()
        if self._timed:
            seconds = self._timed["elapsed"]
            means[f"{self._rate}_per_second"] = self._timed[self._rate] / seconds
            means["seconds_per_step"] = seconds / self._timed["steps"]
            means["slowest_step"] = self._slowest
            if self._peak_flops:
                means["mfu"] = self._timed["model_flops"] / seconds / self._peak_flops
        shares = {STEP: 0.0, INPUT: 0.0} | self._phases.shares()
        means |= {NAMES.get(name, f"{name}_share"): share for name, share in shares.items()}
        if memory := jax.local_devices()[0].memory_stats():
            means["device_memory_peak_gib"] = memory["peak_bytes_in_use"] / 2**30
        self._log.write(self._step, means)
        self._progress.report(self._step, means)
        self._averages, self._timed, self._slowest = Averages(), collections.Counter(), 0.0
