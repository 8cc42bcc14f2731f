"""Events of a reply: its transcript, text, units and sound while they are written."""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np

from speechgpt_jax.decoding.masks import FORMS, Masks, Part, markers_after
from speechgpt_jax.decoding.requests import Token
from speechgpt_jax.decoding.text_tokens import TextToken, TextTokens
from speechgpt_jax.prompts import END_OF_ANSWER, TRANSCRIPT
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.vocoder.streaming import stream
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Transcript:
    """The next piece of the transcript of a spoken question."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """The next piece of the answer as text, or of a transcription.

    Attributes:
      text: the piece; it may be empty.
      tokens: the tokens that end in it, without what is not part of the text.
    """

    text: str
    tokens: Sequence[TextToken] = ()


@dataclasses.dataclass(frozen=True)
class Units:
    """The next reduced units of the answer."""

    units: list[int]


@dataclasses.dataclass(frozen=True)
class Sound:
    """The next samples of the answer.

    Attributes:
      wav: float32 [samples] at 16 kHz.
      unit_seconds: lengths of the next units in seconds, in their order. They come before the
        sound of their units has ended; those of all units together are the length of the sound.
    """

    wav: np.ndarray
    unit_seconds: Sequence[float] = ()


Event = Transcript | Text | Units | Sound


def text_and_unit_events(
    bursts: Iterable[Sequence[Token]],
    form: str,
    masks: Masks,
    tokenizer: Tokenizer,
    was_cut: Callable[[], bool] = lambda: False,
) -> Iterator[list[Event]]:
    """Tokens of an answer, in lists, -> the events after each list: all but the sound.

    Args:
      bursts: the tokens, of an answer that has the form.
      form: one of masks.FORMS.
      masks: the masks with which the answer was written.
      tokenizer: the tokenizer.
      was_cut: called at the end: whether the answer may have ended within a marker.
    """
    state, part = masks.start(form), masks.part(masks.start(form))
    text = _TextPart(tokenizer, _markers(form, part))
    first_unit, tags = tokenizer.unit_ids.start, frozenset(tokenizer.added_tokens.values())
    for burst in bursts:
        events: list[Event] = []
        units = []
        for token in burst:
            if masks.part(state) is not part:
                events += _text_events(part, *text.finished())
                part = masks.part(state)
                text = _TextPart(tokenizer, _markers(form, part))
            if token.id in tokenizer.unit_ids:
                units.append(token.id - first_unit)
            elif part in (Part.TRANSCRIPT, Part.TEXT) and token.id not in tags:
                text.write(token)
            state = int(masks.table[state, token.id])
        events += _text_events(part, *text.settled())
        yield [*events, Units(units)] if units else events
    yield _text_events(part, *text.finished(is_cut=was_cut()))


def with_sound(
    events: Iterator[list[Event]],
    vocoder: UnitVocoder,
    speaker: int | str,
    duration_scale: float = 1.0,
) -> Generator[Event]:
    """The given events, and the sound of their units as soon as it can be synthesized."""
    units: list[int] = []
    for burst in events:
        yield from burst
        if units := _units(burst):
            break
    if not units:
        return
    later: list[Event] = []

    def pieces():
        yield units
        for burst in events:
            later.extend(burst)
            yield _units(burst)

    durations: list[int] = []
    sound = stream(
        vocoder,
        pieces(),
        speaker=speaker,
        duration_scale=duration_scale,
        on_durations=durations.extend,
    )
    code_seconds = vocoder.config.code_hop_size / SAMPLE_RATE
    for wav in sound:
        yield from later
        later.clear()
        yield Sound(wav, [round(number * code_seconds, 4) for number in durations])
        durations.clear()
    yield from later


class _TextPart:
    """A part of text, which grows token by token."""

    def __init__(self, tokenizer: Tokenizer, markers: Sequence[str]):
        self._tokens, self._markers = TextTokens(tokenizer), markers
        self._returned = 0

    def write(self, token: Token) -> None:
        """Adds a token."""
        self._tokens.write(token)

    def settled(self) -> tuple[str, list[TextToken]]:
        """New text that is final, and its tokens; an end that may begin a marker is held back."""
        text = self._without_markers()
        if TRANSCRIPT.startswith(text.strip()):
            return "", []
        return self._new(self._without_begun_marker(text))

    def finished(self, *, is_cut: bool = False) -> tuple[str, list[TextToken]]:
        """New text at the end of the part; an answer that `is_cut` may end within a marker."""
        self._tokens.finish()
        text = self._without_markers()
        return self._new(self._without_begun_marker(text) if is_cut else text, is_last=True)

    def _without_markers(self) -> str:
        text = self._tokens.text
        for marker in self._markers:
            text, _, _ = text.partition(marker)
        return text

    def _without_begun_marker(self, text: str) -> str:
        begun = (m[:n] for m in self._markers for n in range(len(m) - 1, 0, -1))
        longest = max((len(start) for start in begun if text.endswith(start)), default=0)
        return text[: len(text) - longest]

    def _new(self, text: str, *, is_last: bool = False) -> tuple[str, list[TextToken]]:
        shown = text.lstrip().removeprefix(TRANSCRIPT).lstrip()
        start = len(text) - len(shown)
        # The marker follows a semicolon.
        shown = shown.rstrip().removesuffix(";").rstrip()
        new = shown[self._returned :]
        self._returned = max(self._returned, len(shown))
        return new, self._tokens.take(start, start + len(shown), is_last=is_last)


def _text_events(part: Part | None, text: str, tokens: list[TextToken]) -> list[Event]:
    if part is Part.TRANSCRIPT:
        return [Transcript(text)] if text else []
    return [Text(text, tokens)] if text or tokens else []


def _units(events: list[Event]) -> list[int]:
    return [unit for event in events if isinstance(event, Units) for unit in event.units]


def _markers(form: str, part: Part | None) -> tuple[str, ...]:
    """Markers that end a part of text in a form."""
    parts = FORMS.get(form, ())
    if part in parts and part is not Part.UNITS:
        return markers_after(parts[parts.index(part) :])
    return (END_OF_ANSWER,)
