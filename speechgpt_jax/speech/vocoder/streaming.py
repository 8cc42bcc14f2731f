"""Synthesis of units while they are still being generated.

    for wav in stream(vocoder, pieces_of_units, speaker="slt"):
        play(wav)

The vocoder is three functions with bounded receptive fields: reduced units -> durations, codes ->
pitch, codes and pitch -> samples. Each is computed in windows of one size (one compilation).

A value may be returned before all of its receptive field is known: what follows is then predicted
from what is known. With a lookahead of LOOKAHEAD codes the samples of the shipped vocoder differ
from those of `vocoder(units)` by less than 1 % (-52 dB), each code more halves the difference, and
without a limit of the lookahead they are the same.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.pitch import phases
from speechgpt_jax.speech.vocoder.hifigan import PitchPredictor
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# Most units per call of the duration predictor, most codes per call of the pitch predictor.
UNITS, PITCH_CODES = 32, 64
# LOOKAHEAD: codes that must be known after a code before it is synthesized. READY: fewest codes
# synthesized at a time. Codes are 20 ms: the first chunk comes after 15 codes, 0.3 s of units.
# Chunks of one size follow without a gap if units come at least as fast as their sound.
LOOKAHEAD, READY = 8, 7

# (rows, expected): rows [n, F] to append, and rows [m, F] that probably follow. Values near the end
# are computed with the expected rows as their context; the next piece replaces them.
Pieces = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Window:
    """Part of a sequence, of which a function computes values.

    Attributes:
      rows: [size, F]; those from `number` on are zeros. All windows of a sequence have one size.
      number: number of rows that are known or expected.
      first: index of the first row in the sequence.
      place: position in the window of the first value wanted.
    """

    rows: np.ndarray
    number: int
    first: int
    place: int

    @property
    def mask(self) -> np.ndarray:
        """float32 [1, size]: 1 for the first `number` rows, else 0."""
        return (np.arange(len(self.rows)) < self.number).astype(np.float32)[None]


# A window [size, F] -> values [n, ...] from its `place` on.
WindowFunction = Callable[[Window], np.ndarray]


def stream(
    vocoder: UnitVocoder,
    pieces: Iterable[Sequence[int]],
    *,
    speaker: int | str = 0,
    duration_scale: float = 1.0,
    chunk_codes: int = 25,
    lookahead: int | None = LOOKAHEAD,
    on_durations: Callable[[list[int]], object] = lambda durations: None,
) -> Iterator[np.ndarray]:
    """Synthesizes reduced units as they arrive; yields wav, float32 [samples], as soon as possible.

    Args:
      vocoder: the vocoder.
      pieces: units, in pieces of any length; negative units are dropped.
      speaker: name or index.
      duration_scale: 2 halves the speed.
      chunk_codes: most codes (of 20 ms) per chunk.
      lookahead: number of codes after a code that must be known, the last ones by predicted
        durations, before it is synthesized; None: all that it depends on. Then the chunks together
        are the samples of `vocoder(units)`.
      on_durations: is called with the durations in codes of the next units, as soon as they are
        settled: before the samples of these units are yielded.

    Raises:
      UserError: the vocoder doesn't have the speaker or a unit (then at that unit), or a number is
        out of its range.
    """
    check_number("duration_scale", duration_scale, at_least=0.01, at_most=100)
    check_number("chunk_codes", chunk_codes, at_least=1)
    if lookahead is not None:
        check_number("lookahead", lookahead, at_least=0)
    config = vocoder.config
    speakers = np.array([config.speaker_index(speaker)], np.int32)

    def with_durations(window: Window) -> np.ndarray:
        """Rows (unit) -> rows (unit, duration)."""
        units = window.rows[: window.number, 0].astype(np.int32)
        (durations,) = vocoder.predict_durations([units], speakers, duration_scale)
        return np.stack([units, durations], axis=1)[window.place :]

    expect = lookahead is not None
    units = (_column(config.check_units(u)) for u in map(_without_negative, pieces) if len(u))
    reach = config.duration_kernel_size - 1
    timed = sliding(
        with_durations,
        ((rows, rows[:0]) for rows in units),
        before=reach,
        after=reach,
        at_most=UNITS,
        expect=expect,
    )

    def repeated() -> Pieces:
        for known, expected in timed:
            if len(known):
                on_durations(known[:, 1].tolist())
            yield _repeated(known), _repeated(expected)

    rows = repeated()
    if config.pitch_hidden_dim:
        rows = sliding(
            _Pitch(vocoder, speakers),
            rows,
            before=PitchPredictor.BEFORE,
            after=PitchPredictor.AFTER,
            at_most=PITCH_CODES,
            expect=expect,
        )
    reach = config.contexts[0]
    samples = _Samples(vocoder, speakers, chunk_codes)
    chunks = sliding(
        samples,
        rows,
        before=reach,
        after=reach,
        wait=lookahead,
        at_most=chunk_codes,
        at_least=min(READY, chunk_codes),
    )
    return (chunk.reshape(-1) for chunk, _ in chunks)


def sliding(
    function: WindowFunction,
    pieces: Pieces,
    *,
    before: int,
    after: int,
    wait: int | None = None,
    at_most: int,
    at_least: int = 1,
    expect: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values of a function with a bounded receptive field over a sequence that arrives in pieces.

    Args:
      function: computes values of a window of the sequence, from its `place` on.
      pieces: the sequence. Of the expected rows themselves no values are returned.
      before, after: rows before and after a row that its value depends on.
      wait: rows after a row, expected ones included, that must be known before its value is
        returned; by default `after` rows that are not only expected.
      at_most, at_least: values per piece of the result; the last may be shorter than `at_least`.
      expect: also yield, after each piece, the values that are expected to follow.

    Yields:
      Values, and the values that are expected to follow them.
    """
    size, first, done = before + at_most + after, 0, 0
    known: Any = None
    rows: Any = None

    def values(count: int) -> np.ndarray:
        number = min(size, len(rows))
        padded = np.pad(rows[:size], ((0, size - number), (0, 0)))
        return function(Window(padded, number, first, done - first))[:count]

    for piece in itertools.chain(pieces, [None]):
        if piece is None:
            if known is None:
                return
            rows = known
        else:
            known = piece[0] if known is None else np.concatenate([known, piece[0]])
            rows = np.concatenate([known, piece[1]])
        wanted = 1 if piece is None else at_least
        expected = len(rows) - len(known)
        waiting = expected + after if wait is None else max(min(wait, after), expected)
        if piece is None:
            waiting = 0
        while (ready := first + len(rows) - waiting - done) >= wanted:
            count = min(ready, at_most)
            result = values(count)
            yield result, result[:0]
            done += count
            passed = max(0, done - before - first)
            known, rows, first = known[passed:], rows[passed:], first + passed
        if expect and piece is not None and first + len(rows) > done:
            result = values(min(first + len(rows) - done, at_most))
            yield result[:0], result


class _Pitch:
    """Rows (code) -> rows (code, pitch in Hz, 1 where voiced)."""

    def __init__(self, vocoder: UnitVocoder, speakers: np.ndarray):
        self._vocoder, self._speakers = vocoder, speakers

    def __call__(self, window: Window) -> np.ndarray:
        codes = window.rows[None, :, 0].astype(np.int32)
        hz, voiced = _predict_pitch(self._vocoder, codes, self._speakers, window.mask)
        return np.stack([codes[0], hz[0], voiced[0]], axis=1)[window.place :]


class _Samples:
    """Rows (code) or (code, pitch in Hz, 1 where voiced) -> samples [at_most, hop] of each code."""

    def __init__(self, vocoder: UnitVocoder, speakers: np.ndarray, at_most: int):
        self._vocoder, self._speakers, self._at_most = vocoder, speakers, at_most
        # Phase of the pulses at each code of the last window, and index of its first code.
        self._phases, self._first = np.zeros(1, np.float32), 0

    def __call__(self, window: Window) -> np.ndarray:
        code, *pitch = window.rows.T[:, None].astype(np.float32)
        wav, following = _generate(
            self._vocoder,
            code.astype(np.int32),
            self._speakers,
            window.mask,
            pitch,
            self._phases[window.first - self._first] if pitch else 0.0,
            window.first,
            window.place,
            self._at_most,
        )
        if pitch:
            self._phases, self._first = np.asarray(following)[0], window.first
        return np.asarray(wav).reshape(self._at_most, -1)


@jax.jit
def _predict_pitch(
    vocoder: UnitVocoder,
    codes: jax.Array,  # BT
    speakers: jax.Array,  # B
    mask: jax.Array,  # BT
) -> tuple[jax.Array, jax.Array]:  # BT, BT
    return vocoder.predict_pitch(codes, speakers, mask)


@functools.partial(jax.jit, static_argnames="number")
def _generate(
    vocoder: UnitVocoder,
    codes: jax.Array,  # BT
    speakers: jax.Array,  # B
    mask: jax.Array,  # BT
    pitch: Sequence[jax.Array],  # pitch in Hz and voicing, both BT, or nothing
    start: jax.Array | float,  # phase of the pulses at the first code
    first_code: jax.Array | int,
    place: jax.Array | int,
    number: int,
) -> tuple[jax.Array, jax.Array | None]:
    """Samples [B, number * hop] of `number` codes from `place` on, and the pulses' phase [B, T]."""
    x, config, only = vocoder.embed(codes, speakers), vocoder.config, (place, number)
    if not pitch:
        return vocoder.generator(x, mask, only=only), None
    hz, voiced = pitch
    wav = vocoder.generator(x, mask, vocoder.pulses(hz, voiced, start), first_code, only)
    return wav, phases(hz, voiced, config.sampling_rate, config.code_hop_size, start)


def _without_negative(piece: Sequence[int]) -> np.ndarray:
    units = np.asarray(piece).reshape(-1)
    return units[units >= 0]


def _repeated(timed: np.ndarray) -> np.ndarray:
    """Units with durations [N, 2] -> codes [T, 1]."""
    units, durations = timed.T
    return _column(np.repeat(units, durations))


def _column(values: npt.ArrayLike) -> np.ndarray:
    """[n] -> [n, 1]."""
    return np.asarray(values)[:, None]
