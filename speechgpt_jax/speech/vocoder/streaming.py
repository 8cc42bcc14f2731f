"""Speech while its units are still being written.

    for wav in stream(vocoder, pieces_of_units, speaker="slt"):
        play(wav)

The vocoder is three maps of bounded reach: merged units -> durations, codes -> pitch, codes and
pitch -> sound. Each one runs over windows of one size along what is known so far, and tells a value
once all that it depends on is there. So the chunks together are the samples of `vocoder(units)`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from speechgpt_jax.speech.pitch import phases
from speechgpt_jax.speech.vocoder.hifigan import PitchPredictor
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# The most that one call of the duration and of the pitch predictor decides.
UNITS, PITCH_CODES = 32, 64


def stream(
    vocoder: UnitVocoder,
    pieces: Iterable[Sequence[int]],
    *,
    speaker: int | str = 0,
    duration_scale: float = 1.0,
    chunk_codes: int = 25,
) -> Iterator[np.ndarray]:
    """Pieces of merged units as they come -> chunks of wav, float32 [samples], as soon as known.

    Args:
      pieces: each of any length; negative units are dropped.
      speaker, duration_scale: as for `vocoder.synthesize`.
      chunk_codes: codes (of 20 ms) a chunk; the first chunk is what can be told first. The shipped
        vocoder begins after half a second of units.

    Raises:
      UserError: units or a speaker that the vocoder does not have.
    """
    config = vocoder.config
    speakers = np.array([vocoder.speaker_index(speaker)], np.int32)

    def durations_of(rows, number, _, place):
        units = rows[:number, 0].astype(np.int32)
        (durations,) = vocoder.predict_durations([units], speakers, duration_scale)
        return np.stack([units, durations], axis=1)[place:]

    units = (_column(vocoder.checked_units(piece)) for piece in map(_spoken, pieces) if len(piece))
    reach = config.duration_kernel_size - 1
    timed = sliding(durations_of, units, before=reach, after=reach, at_most=UNITS)
    rows = (_column(np.repeat(*piece.T)) for piece in timed)
    if config.pitch_hidden_dim:
        rows = sliding(
            _Melody(vocoder, speakers),
            rows,
            before=PitchPredictor.BEFORE,
            after=PitchPredictor.AFTER,
            at_most=PITCH_CODES,
        )
    reach = config.contexts[0]
    sound = _Sound(vocoder, speakers, chunk_codes)
    chunks = sliding(
        sound, rows, before=reach, after=reach, at_most=chunk_codes, at_least=chunk_codes
    )
    return (chunk.reshape(-1) for chunk in chunks)


def sliding(
    function: Callable,
    pieces: Iterable[np.ndarray],
    *,
    before: int,
    after: int,
    at_most: int,
    at_least: int = 1,
) -> Iterator[np.ndarray]:
    """`function` of a sequence whose rows [n, F] come in pieces, told in pieces of its own.

    Args:
      function: (rows [size, F] with zeros at the end, number of them that are known, number of the
        first in the sequence, place among them of the first to tell) -> a value for each row from
        there on [at_most or less, ...]. `size` never changes.
      pieces: of the sequence.
      before, after: rows on either side of one that its value depends on.
      at_most, at_least: rows told at a time; fewer as the first ones and at the end.
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
            window, told = known[:size], min(ready, at_most)
            padded = np.pad(window, ((0, size - len(window)), (0, 0)))
            yield function(padded, len(window), first, done - first)[:told]
            done += told
            known, first = known[max(0, done - before - first) :], max(first, done - before)
            wanted = 1 if ended else at_least


class _Melody:
    """Rows (code) -> rows (code, pitch in Hz, 1 where voiced)."""

    def __init__(self, vocoder, speakers):
        self._vocoder, self._speakers = vocoder, speakers

    def __call__(self, rows, number, _, place):
        codes = rows[None, :, 0].astype(np.int32)
        hz, voiced = _predict_pitch(self._vocoder, codes, self._speakers, _mask(rows, number))
        return np.stack([codes[0], hz[0], voiced[0]], axis=1)[place:]


class _Sound:
    """Rows (code) or (code, pitch in Hz, 1 where voiced) -> samples of each code."""

    def __init__(self, vocoder, speakers, at_most):
        self._vocoder, self._speakers, self._at_most = vocoder, speakers, at_most
        # The pulses' phase at each code of the last window, and that window's first code.
        self._phases, self._first = np.zeros(1, np.float32), 0

    def __call__(self, rows, number, first, place):
        code, *melody = rows.T[:, None].astype(np.float32)
        start = self._phases[first - self._first] if melody else 0.0
        mask = _mask(rows, number)
        arguments = code.astype(np.int32), self._speakers, mask, melody, start, first, place
        wav, following = _speak(self._vocoder, *arguments, self._at_most)
        if melody:
            self._phases, self._first = np.asarray(following)[0], first
        return np.asarray(wav).reshape(self._at_most, -1)


@jax.jit
def _predict_pitch(vocoder, codes, speakers, mask):
    return vocoder.predict_pitch(codes, speakers, mask)


@functools.partial(jax.jit, static_argnames="number")
def _speak(vocoder, codes, speakers, mask, melody, start, first_code, place, number):
    x, config, only = vocoder.embed(codes, speakers), vocoder.config, (place, number)
    if not melody:
        return vocoder.generator(x, mask, only=only), None
    wav = vocoder.generator(x, mask, vocoder.pulses(*melody, start), first_code, only)
    hz, voiced = melody
    return wav, phases(hz, voiced, config.sampling_rate, config.code_hop_size, start)


def _spoken(piece) -> np.ndarray:
    units = np.asarray(piece).reshape(-1)
    return units[units >= 0]


def _column(values) -> np.ndarray:
    return np.asarray(values)[:, None]


def _mask(rows, number) -> np.ndarray:
    return (np.arange(len(rows)) < number).astype(np.float32)[None]
