"""Answers aloud of a Realtime session, of which the user may hear only the beginning."""

import dataclasses
import math

import numpy as np

from speechgpt_jax.decoding.events import Event, Sound, Text, Units
from speechgpt_jax.decoding.history import shortened
from speechgpt_jax.serving.audio_api import word_times
from speechgpt_jax.serving.protocol import excerpt, invalid
from speechgpt_jax.serving.realtime_types import Truncation
from speechgpt_jax.speech.audio import SAMPLE_RATE


@dataclasses.dataclass
class Spoken:
    """An answer aloud, as far as it was sent.

    Attributes:
      text, units: the answer.
      unit_seconds: lengths of the units, as far as they are known.
      seconds: length of the sound.
      is_over: whether its response has ended.
      turn: place of its turn in the conversation's history; None if it is not remembered.
    """

    text: str = ""
    units: list[int] = dataclasses.field(default_factory=list)
    unit_seconds: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    is_over: bool = False
    turn: int | None = None

    def add(self, event: Event) -> None:
        """Adds an event of the answer."""
        match event:
            case Text(text):
                self.text += text
            case Units(units):
                self.units += units
            case Sound(wav, unit_seconds):
                self.unit_seconds += unit_seconds
                self.seconds += len(wav) / SAMPLE_RATE

    def until(self, seconds: float) -> tuple[str, list[int]]:
        """Text and units that end within the first `seconds`; times of words are estimated."""
        words = [row for row in word_times(self.text, 0, self.seconds) if row["end"] <= seconds]
        number = int(np.searchsorted(np.cumsum(self.unit_seconds), seconds + 1e-3))
        return " ".join(row["word"] for row in words), self.units[:number]


class SpokenAnswers:
    """All answers aloud of a session."""

    def __init__(self, history: list[str]):
        """
        Args:
          history: the session's turns, as text.
        """
        self._history = history
        self._answers: dict[str, Spoken] = {}

    def begin(self, item_id: str) -> Spoken:
        """A new answer, whose item has this id."""
        return self._answers.setdefault(item_id, Spoken())

    def shorten(self, heard: Truncation) -> None:
        """Leaves of an answer in the history what the user has heard.

        Raises:
          ApiError: there is no such answer, it is in progress, or it is shorter.
        """
        spoken = self._answers.get(heard.item_id)
        if spoken is None:
            raise invalid(
                f"item_id: expected the id of an answer with sound, got {excerpt(heard.item_id)}.",
                "item_id",
            )
        if not spoken.is_over:
            raise invalid("The response is in progress; cancel it first.", "item_id")
        most = math.ceil(1000 * spoken.seconds)
        if heard.audio_end_ms > most:
            raise invalid(
                f"audio_end_ms: the answer has {most} ms of sound, got {heard.audio_end_ms}.",
                "audio_end_ms",
            )
        if spoken.turn is not None:
            text, units = spoken.until(heard.audio_end_ms / 1000)
            self._history[spoken.turn] = shortened(self._history[spoken.turn], text, units)
