"""Metrics of spoken answers, with the shipped vocoder, real recordings' units and recognisers."""

import json

import pytest

from speechgpt_jax.evaluation.recognisers import VocabularyRecogniser
from speechgpt_jax.evaluation.spoken import SpokenAnswers
from speechgpt_jax.prompts import Response
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

CLIPS = ASSETS / "corpus" / "clips"


@pytest.fixture(scope="module")
def recordings():
    """Text and path of two recordings of the voice slt."""
    rows = json.loads((CLIPS / "clips.json").read_text())
    chosen = [row for row in rows if row["speaker"] == "slt"][:2]
    return [(row["text"], CLIPS / row["file"]) for row in chosen]


def test_a_recogniser_that_knows_few_words(recordings):
    (text, path), (another, _) = recordings
    transcript = VocabularyRecogniser([text, another])(load_audio(path))
    assert set(transcript.split()) <= set(f"{text} {another}".replace(".", "").split())
    assert len(transcript.split()) > 1


@pytest.mark.slow
def test_figures_of_right_wrong_and_silent_answers(recordings):
    encoder = Speech2Unit.from_pretrained(ASSETS / "hubert")
    (text, path), (another, _) = recordings
    units = encoder(load_audio(path))[0].tolist()
    targets = [Response("", "", units, source) for source in (text, another, text)]
    predictions = [Response("", "", spoken) for spoken in (units, units, [])]
    vocoder = UnitVocoder.from_pretrained(ASSETS / "vocoder")
    transcripts = iter([text, text.upper()])
    metric = SpokenAnswers(vocoder, "slt", lambda texts: {"judge": lambda wav: next(transcripts)})
    figures = metric(targets, predictions)
    assert figures["judge_understood"] == pytest.approx(1 / 3)
    assert figures["judge_wer_low"] + figures["judge_wer"] > 0.3
    assert metric([Response("", "a", [])], predictions[:1]) == {}
    # Directly spoken answers: there is no text to compare with.
    assert metric([Response("", "", units), Response("", "...", units)], predictions[:2]) == {}
    assert SpokenAnswers.by_default()(targets[:1], predictions[:1])["whisper_wer"] < 0.5
