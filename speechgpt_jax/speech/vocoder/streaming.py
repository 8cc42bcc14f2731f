"""Synthesis of units while they are still being generated.

    for wav in stream(vocoder, pieces_of_units, speaker="slt"):
        play(wav)

The vocoder is three functions with bounded receptive fields: reduced units -> durations, codes ->
pitch, codes and pitch -> samples. Each is computed in windows of one size (one compilation), and a
value is returned once everything in its receptive field is known. So the chunks together are the
samples of `vocoder(units)`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.pitch import phases
from speechgpt_jax.speech.vocoder.hifigan import PitchPredictor
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# Most units per call of the duration predictor, most codes per call of the pitch predictor.
UNITS, PITCH_CODES = 32, 64

# Rows [n, F] of a sequence, in pieces.
Pieces = Iterable[np.ndarray]


def stream(
    vocoder: UnitVocoder,
    pieces: Iterable[Sequence[int]],
    *,
    speaker: int | str = 0,
    duration_scale: float = 1.0,
    chunk_codes: int = 25,
) -> Iterator[np.ndarray]:
    """Synthesizes reduced units as they arrive; yields wav, float32 [samples], as soon as possible.

    Args:
      vocoder: the vocoder.
      pieces: units, in pieces of any length; negative units are dropped.
      speaker: name or index.
      duration_scale: 2 halves the speed.
      chunk_codes: codes (of 20 ms) per chunk; the first chunk is shorter. The shipped vocoder
        yields it after half a second of units.

    Raises:
      UserError: the vocoder doesn't have the speaker or a unit (then at that unit), or a number is
        out of its range.
    """
    check_number("duration_scale", duration_scale, above=0)
    check_number("chunk_codes", chunk_codes, at_least=1)
    config = vocoder.config
    speakers = np.array([config.speaker_index(speaker)], np.int32)

    def durations_of(rows, number, _, place):
        units = rows[:number, 0].astype(np.int32)
        (durations,) = vocoder.predict_durations([units], speakers, duration_scale)
        return np.stack([units, durations], axis=1)[place:]

    units = (_column(config.check_units(u)) for u in map(_without_negative, pieces) if len(u))
    reach = config.duration_kernel_size - 1
    timed = sliding(durations_of, units, before=reach, after=reach, at_most=UNITS)
    rows = (_column(np.repeat(*piece.T)) for piece in timed)
    if config.pitch_hidden_dim:
        rows = sliding(
            _Pitch(vocoder, speakers),
            rows,
            before=PitchPredictor.BEFORE,
            after=PitchPredictor.AFTER,
            at_most=PITCH_CODES,
        )
    reach = config.contexts[0]
    samples = _Samples(vocoder, speakers, chunk_codes)
    chunks = sliding(
        samples, rows, before=reach, after=reach, at_most=chunk_codes, at_least=chunk_codes
    )
    return (chunk.reshape(-1) for chunk in chunks)


def sliding(
    function: Callable,
    pieces: Pieces,
    *,
    before: int,
    after: int,
    at_most: int,
    at_least: int = 1,
) -> Iterator[np.ndarray]:
    """Values of a function with a bounded receptive field over a sequence that arrives in pieces.

    Args:
      function: called with a window of the sequence: rows [size, F], their number, the index of the
        first row in the sequence, and the position in the window of the first value wanted. Rows
        from `number` on are zeros; `size` is the same in all calls. Returns the values from that
        position on.
      pieces: the sequence.
      before, after: rows before and after a row that its value depends on.
      at_most, at_least: values per piece of the result; the first piece and the last may be shorter
        than `at_least`.
    """
    size, known, first, done = before + at_most + after, None, 0, 0
    for piece in itertools.chain(pieces, [None]):
        ended = piece is None
        if not ended:
            known = piece if known is None else np.concatenate([known, piece])
        if known is None:
            continue
        wanted = 1 if ended or done == 0 else at_least
        while (ready := first + len(known) - done - (0 if ended else after)) >= wanted:
            window, count = known[:size], min(ready, at_most)
            padded = np.pad(window, ((0, size - len(window)), (0, 0)))
            yield function(padded, len(window), first, done - first)[:count]
            done += count
            known, first = known[max(0, done - before - first) :], max(first, done - before)
            wanted = 1 if ended else at_least


class _Pitch:
    """Rows (code) -> rows (code, pitch in Hz, 1 where voiced)."""

    def __init__(self, vocoder, speakers):
        self._vocoder, self._speakers = vocoder, speakers

    def __call__(self, rows, number, _, place):
        codes = rows[None, :, 0].astype(np.int32)
        hz, voiced = _predict_pitch(self._vocoder, codes, self._speakers, _mask(rows, number))
        return np.stack([codes[0], hz[0], voiced[0]], axis=1)[place:]


class _Samples:
    """Rows (code) or (code, pitch in Hz, 1 where voiced) -> samples of each code."""

    def __init__(self, vocoder, speakers, at_most):
        self._vocoder, self._speakers, self._at_most = vocoder, speakers, at_most
        # Phase of the pulses at each code of the last window, and index of its first code.
        self._phases, self._first = np.zeros(1, np.float32), 0

    def __call__(self, rows, number, first, place):
        code, *pitch = rows.T[:, None].astype(np.float32)
        start = self._phases[first - self._first] if pitch else 0.0
        mask = _mask(rows, number)
        arguments = code.astype(np.int32), self._speakers, mask, pitch, start, first, place
        wav, following = _generate(self._vocoder, *arguments, self._at_most)
        if pitch:
            self._phases, self._first = np.asarray(following)[0], first
        return np.asarray(wav).reshape(self._at_most, -1)


@jax.jit
def _predict_pitch(vocoder, codes, speakers, mask):
    return vocoder.predict_pitch(codes, speakers, mask)


@functools.partial(jax.jit, static_argnames="number")
def _generate(vocoder, codes, speakers, mask, pitch, start, first_code, place, number):
    x, config, only = vocoder.embed(codes, speakers), vocoder.config, (place, number)
    if not pitch:
        return vocoder.generator(x, mask, only=only), None
    wav = vocoder.generator(x, mask, vocoder.pulses(*pitch, start), first_code, only)
    hz, voiced = pitch
    return wav, phases(hz, voiced, config.sampling_rate, config.code_hop_size, start)


def _without_negative(piece: Sequence[int]) -> np.ndarray:
    units = np.asarray(piece).reshape(-1)
    return units[units >= 0]


def _column(values) -> np.ndarray:
    return np.asarray(values)[:, None]


def _mask(rows, number) -> np.ndarray:
    return (np.arange(len(rows)) < number).astype(np.float32)[None]
