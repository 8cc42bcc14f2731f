"""Voice activity by energy: where speech begins and ends in sound that arrives in pieces.

The level of every 20 ms is compared with that of the background, which follows the quietest frames.
No model is needed; for loud, changing noise a neural detector would be better.
"""

from typing import NamedTuple

import numpy as np

from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.audio import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50
# Levels in dB, 0 for full scale: speech is louder than _QUIET; the estimate of the background
# is kept between _SILENCE and _LOUD.
_QUIET, _SILENCE, _LOUD = -55.0, -80.0, -30.0
# Most dB per frame by which the background rises: within seconds, not in a word.
_RISE = 0.05
# Frames of speech in a row that begin it: a click is shorter.
_BEGIN = 4


class Change(NamedTuple):
    """Start or end of speech, at a sample since the start of the sound."""

    is_start: bool
    sample: int


class VoiceActivity:
    """Finds where speech begins and ends."""

    def __init__(self, threshold: float = 0.5, silence_seconds: float = 0.5):
        """
        Args:
          threshold: 0 to 1; speech must be louder than the background by 20 dB times this.
          silence_seconds: silence that ends speech.
        """
        check_number("threshold", threshold, at_least=0, at_most=1)
        check_number("silence_seconds", silence_seconds, above=0, at_most=10)
        self._margin, self._end = 20 * threshold, max(1, round(silence_seconds * 50))
        self._rest = np.zeros(0, np.float32)
        self._background = _SILENCE
        self._frames = self._loud = self._quiet = 0
        self.is_speech = False

    def add(self, wav: np.ndarray) -> list[Change]:
        """Changes within the next samples, float32 [samples] at 16 kHz.

        A start is found 80 ms late, an end after `silence_seconds`.
        """
        wav = np.concatenate([self._rest, wav])
        number = len(wav) // FRAME
        self._rest = wav[number * FRAME :]
        levels = level(wav[: number * FRAME].reshape(number, FRAME))
        return [change for one in levels if (change := self._add_frame(float(one)))]

    def _add_frame(self, level: float) -> Change | None:
        if self._frames == 0:
            self._background = level
        follow = min(level, self._background + _RISE)
        self._background = float(np.clip(follow, _SILENCE, _LOUD))
        self._frames += 1
        is_loud = level > max(_QUIET, self._background + self._margin)
        self._loud = self._loud + 1 if is_loud else 0
        self._quiet = 0 if is_loud else self._quiet + 1
        if not self.is_speech and self._loud == _BEGIN:
            self.is_speech = True
            return Change(True, (self._frames - _BEGIN) * FRAME)
        if self.is_speech and self._quiet == self._end:
            self.is_speech = False
            return Change(False, self._frames * FRAME)
        return None


def level(frames: np.ndarray) -> np.ndarray:
    """Level in dB of frames [N, samples], full scale being 0: [N]."""
    return 10 * np.log10(np.mean(np.square(frames), axis=-1) + 1e-10)


def speech_bounds(wav: np.ndarray) -> tuple[float, float]:
    """Seconds at which speech begins and ends in a whole recording; all of it if none is found."""
    seconds = round(len(wav) / SAMPLE_RATE, 3)
    number = len(wav) // FRAME
    if not number:
        return 0.0, seconds
    levels = level(wav[: number * FRAME].reshape(number, FRAME))
    loud = np.flatnonzero(levels > max(_QUIET, np.max(levels) - 35))
    if not len(loud):
        return 0.0, seconds
    return round(float(loud[0]) / 50, 3), min(round(float(loud[-1] + 1) / 50, 3), seconds)
