"""Phases of a training run and their durations, for the watchdog and for the run's last line."""

import collections
import statistics
import time

# Phases of `loop.fit`. Steps are computed while the next batch is read, so `input` is only the time
# of reading at whose end the step before was finished.
START = "start"
RESTORE = "restore"
COMPILE = "compile"
INPUT = "input"
STEP = "step"
EVALUATE = "evaluate"
SAVE = "save"
# Number of the last durations of a phase that are remembered, for their median.
RECENT = 101


class Phases:
    """The current phase of a run, and how long the earlier ones took.

        phases = Phases()
        phases.enter(RESTORE)
        ...
        phases.enter(STEP)

    Attributes:
      current: name of the current phase, and when it began, in seconds of time.monotonic.
      step: number of the last finished step; 0 before the first.
      step_ended: when that was, or when the run started.
      began: when the run started.
    """

    def __init__(self):
        self.began = self.step_ended = time.monotonic()
        self.current = START, self.began
        self.step = 0
        self._totals: dict[str, float] = {}
        self._recent: dict[str, collections.deque] = {}

    def enter(self, name: str) -> None:
        """Ends the current phase and begins the phase `name`, unless it is the current one."""
        now = time.monotonic()
        ended, since = self.current
        if name == ended:
            return
        self._totals[ended] = self._totals.get(ended, 0.0) + now - since
        recent = self._recent.setdefault(ended, collections.deque(maxlen=RECENT))
        recent.append(now - since)
        self.current = name, now

    def rename(self, name: str) -> None:
        """Counts the current phase, from its beginning, as another."""
        self.current = name, self.current[1]

    def finish_step(self, step: int) -> None:
        """Notes that `step` is finished."""
        self.step, self.step_ended = step, time.monotonic()

    def median(self, name: str) -> float | None:
        """Median of the last durations of a phase in seconds; None if there are under three."""
        recent = list(self._recent.get(name, ()))
        return statistics.median(recent) if len(recent) >= 3 else None

    def shares(self) -> dict[str, float]:
        """{phase: its share of the time since the start}, the longest first.

        The current phase counts up to now.
        """
        now = time.monotonic()
        name, since = self.current
        totals = self._totals | {name: self._totals.get(name, 0.0) + now - since}
        longest_first = sorted(totals.items(), key=lambda item: -item[1])
        return {name: seconds / (now - self.began) for name, seconds in longest_first}
