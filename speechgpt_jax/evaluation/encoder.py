"""Word error rate that encoding and resynthesis add, by speaker.

The recordings are encoded, their units are synthesized in one voice, and a recogniser transcribes
the recordings and the synthesized speech, clip by clip. How much its word error rate rises is what
encoder and vocoder lose.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from speechgpt_jax import manifests
from speechgpt_jax.evaluation.metrics import check_references, rate, word_errors
from speechgpt_jax.evaluation.vocoder import synthesized
from speechgpt_jax.manifests import check_fields, check_recordings
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.speech.same_units import check_same_units
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.unit_text import reduce_units

ALL_SPEAKERS = "all"


@dataclasses.dataclass(frozen=True)
class EncoderScore:
    """Word error rate of one source of one speaker's sentences.

    Attributes:
      speaker: speaker of the recordings, or "all" for all recordings together.
      source: "original", "units" (with their durations) or "reduced units" (with predicted ones).
      word_error_rate: word errors per word.
      above_original: the difference to the word error rate of the originals.
      interval: 95 % interval of `above_original`, by bootstrap over the sentences.
    """

    speaker: str
    source: str
    word_error_rate: float
    above_original: float
    interval: tuple[float, float]


def evaluate_encoder(
    speech2unit: Speech2Unit,
    vocoder: UnitVocoder,
    rows: Sequence[Mapping],
    recognise: Callable[[np.ndarray], str],
    *,
    voice: str | int,
    sentences: int | None = None,
) -> Iterator[EncoderScore]:
    """Scores of each speaker, one after the other, then those of all speakers together.

    Args:
      speech2unit: encodes the recordings.
      vocoder: synthesizes their units.
      rows: {path, text, speaker} of the recordings.
      recognise: wav float32 [samples] -> text.
      voice: speaker of the vocoder, in whose voice it synthesizes; a name or an index.
      sentences: number of sentences per speaker; None: all.

    Raises:
      UserError: a row lacks a field, a text has no words, the vocoder has no such speaker, or
        encoder and vocoder have different numbers of units; raised before anything is encoded.
    """
    by_speaker = collections.defaultdict(list)
    check_fields(rows, ("path", "text", "speaker"))
    check_recordings(rows)
    for row in rows:
        by_speaker[row["speaker"]].append(row)
    by_speaker = {name: by_speaker[name][:sentences] for name in sorted(by_speaker)}
    check_references(row for speaker_rows in by_speaker.values() for row in speaker_rows)
    vocoder.config.speaker_index(voice)
    check_same_units(speech2unit, vocoder)
    everything = collections.defaultdict(list)
    for speaker, speaker_rows in by_speaker.items():
        originals = [load_recording(row["path"]) for row in speaker_rows]
        unit_rows = encoded(speaker_rows, originals, speech2unit)
        sources = {"original": originals} | synthesized(vocoder, unit_rows, voice)
        counts = {
            source: [
                word_errors(row["text"], recognise(wav)) for row, wav in zip(speaker_rows, wavs)
            ]
            for source, wavs in sources.items()
        }
        for source, sentence_errors in counts.items():
            everything[source] += sentence_errors
        yield from scores(speaker, counts)
    if len(by_speaker) > 1:
        yield from scores(ALL_SPEAKERS, everything)


def encoded(
    rows: Sequence[Mapping], wavs: list[np.ndarray], speech2unit: Speech2Unit
) -> list[dict]:
    """The rows with `units` and `durations` of their recordings, wavs float32 [samples]."""
    reduced = [reduce_units(cluster_ids) for cluster_ids in speech2unit.cluster_ids(wavs)]
    return [manifests.with_units(row, *units) for row, units in zip(rows, reduced)]


def scores(speaker: str, counts: Mapping[str, Sequence[tuple[int, int]]]) -> Iterator[EncoderScore]:
    """A score for each source: (errors, words) of every sentence, "original" among the sources."""
    original, total = np.array(counts["original"]).T
    for source, sentence_errors in counts.items():
        errors = np.array(sentence_errors)[:, 0]
        above = rate("above", errors - original, total)
        yield EncoderScore(
            speaker,
            source,
            float(errors.sum() / total.sum()),
            above["above"],
            (above["above_low"], above["above_high"]),
        )
