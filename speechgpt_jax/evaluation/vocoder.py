"""Word error rate and naturalness of speech that a vocoder synthesizes from units of recordings."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from speechmos import dnsmos

from speechgpt_jax.errors import naming
from speechgpt_jax.evaluation.metrics import check_references, wer
from speechgpt_jax.manifests import check_fields, check_recordings
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.speech.vocoder.config import check_durations
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# Sentences synthesized at a time.
BATCH = 16


@dataclasses.dataclass(frozen=True)
class VocoderScore:
    """Quality of one speaker's sentences.

    Attributes:
      speaker: speaker of the recordings.
      source: "original" for the recordings themselves, "units" for speech synthesized from their
        units and durations, "reduced units" for speech whose durations are predicted, as those of a
        language model's answers are.
      word_error_rate: word errors per word.
      naturalness: mean DNSMOS overall (Reddy et al. 2022, arXiv 2110.01763), 1 to 5.
    """

    speaker: str
    source: str
    word_error_rate: float
    naturalness: float


def evaluate_vocoder(
    vocoder: UnitVocoder,
    rows: Sequence[Mapping],
    recognise: Callable[[np.ndarray], str],
    *,
    sentences: int | None = None,
    speaker: str | None = None,
) -> Iterator[VocoderScore]:
    """Scores of each speaker, one after the other.

    Args:
      vocoder: synthesizes the sentences.
      rows: {path, text, units, durations, speaker} of held-out sentences.
      recognise: wav float32 [samples] -> text.
      sentences: number of sentences per speaker; None: all.
      speaker: synthesize with this speaker's voice instead of each row's own.

    Raises:
      UserError: a row lacks a field or doesn't fit the vocoder, or a text has no words.
    """
    by_speaker = collections.defaultdict(list)
    check_fields(rows, ("path", "text", "units", "durations", "speaker"))
    check_recordings(rows)
    for row in rows:
        by_speaker[row["speaker"]].append(row)
    if speaker is not None or vocoder.config.speakers:
        for name in by_speaker if speaker is None else [speaker]:
            vocoder.config.speaker_index(name)
    by_speaker = {name: by_speaker[name][:sentences] for name in sorted(by_speaker)}
    chosen = [row for speaker_rows in by_speaker.values() for row in speaker_rows]
    check_references(chosen)
    for row in chosen:
        with naming(row["path"]):
            vocoder.config.check_units(row["units"])
            check_durations(row["durations"], len(row["units"]))
    for name, speaker_rows in by_speaker.items():
        texts = [row["text"] for row in speaker_rows]
        originals = [load_recording(row["path"]) for row in speaker_rows]
        sources = {"original": originals} | synthesized(vocoder, speaker_rows, speaker)
        for source, wavs in sources.items():
            transcripts = [recognise(wav) for wav in wavs]
            rate = wer(texts, transcripts)["wer"]
            yield VocoderScore(name, source, rate, naturalness(wavs))


def synthesized(
    vocoder: UnitVocoder, rows: Sequence[Mapping], speaker: str | int | None
) -> dict[str, list[np.ndarray]]:
    """Speech from the units of the rows, with their durations and with predicted ones, by source.

    The speaker is each row's own if `speaker` is None.
    """
    wavs = {"units": [], "reduced units": []}
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        units = [row["units"] for row in batch]
        speakers = None
        if vocoder.config.speakers:
            speakers = [row["speaker"] if speaker is None else speaker for row in batch]
        durations = [row["durations"] for row in batch]
        wavs["units"] += vocoder.synthesize(units, durations, speakers)
        wavs["reduced units"] += vocoder.synthesize(units, None, speakers)
    return wavs


def naturalness(wavs: Sequence[np.ndarray]) -> float:
    """Mean DNSMOS overall of wavs, float32 [samples] each."""
    return float(np.mean([dnsmos.run(np.clip(w, -1, 1), SAMPLE_RATE)["ovrl_mos"] for w in wavs]))
