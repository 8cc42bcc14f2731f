"""tools.eval_encoder reports the word errors that encoder and vocoder add, clip by clip."""

import json

import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import encoder, recognisers
from speechgpt_jax.evaluation.encoder import encoded, evaluate_encoder, scores
from speechgpt_jax.evaluation.metrics import word_errors
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import load_audio, save_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from tools import eval_encoder

CLIPS = ASSETS / "corpus" / "clips"


def clips() -> list[dict]:
    """One sentence of each of two speakers, and a second one of the first."""
    by_speaker = {}
    for clip in json.loads((CLIPS / "clips.json").read_text()):
        row = {"path": str(CLIPS / clip["file"]), "text": clip["text"], "speaker": clip["speaker"]}
        by_speaker.setdefault(clip["speaker"], []).append(row)
    return [*by_speaker["awb"][:2], by_speaker["slt"][0]]


def test_errors_are_counted_in_words():
    assert word_errors("What's two plus two?", "what's to plus two two") == (2, 4)
    assert word_errors("One, two.", "") == (2, 2)


def test_an_interval_covers_the_errors_that_were_added():
    counts = {"original": [(1, 10)] * 40, "units": [(1, 10), (4, 10)] * 20}
    original, units = scores("eve", counts)
    assert (original.word_error_rate, original.above_original) == (0.1, 0)
    assert original.interval == (0, 0)
    assert units.word_error_rate == pytest.approx(0.25)
    assert units.above_original == pytest.approx(0.15)
    # 40 sentences, each 0 or 0.3 above: a standard error of 0.3 / 2 / sqrt(40) = 0.024.
    assert units.interval == pytest.approx((0.15 - 1.96 * 0.0237, 0.15 + 1.96 * 0.0237), abs=0.01)


@pytest.mark.slow
def test_each_clip_is_recognised_alone_and_compared_with_its_recording(monkeypatch, capsys):
    rows = clips()
    texts = {len(load_audio(row["path"])): row["text"] for row in rows}
    assert len(texts) == 3

    class Recogniser:
        """Knows the recordings; of other sound, says one wrong word and the first right one."""

        def __call__(self, wav: np.ndarray) -> str:
            return texts.get(len(wav), "wrong")

    speech2unit, vocoder = Speech2Unit.from_pretrained(), UnitVocoder.from_pretrained()
    found = list(evaluate_encoder(speech2unit, vocoder, rows, Recogniser(), voice="slt"))
    assert [(score.speaker, score.source) for score in found] == [
        (speaker, source)
        for speaker in ("awb", "slt", "all")
        for source in ("original", "units", "reduced units")
    ]
    for score in found:
        assert score.word_error_rate == (0 if score.source == "original" else 1)
        assert score.above_original == score.word_error_rate

    monkeypatch.setattr(recognisers, "WhisperRecogniser", Recogniser)
    manifest = ASSETS.parent / "nowhere.jsonl"
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        eval_encoder.main([f"--manifest={manifest}"])


@pytest.mark.slow
def test_units_and_durations_are_those_of_the_recordings():
    row, speech2unit = clips()[2], Speech2Unit.from_pretrained()
    wav = load_audio(row["path"])
    (new,) = encoded([row], [wav], speech2unit)
    units, durations = speech2unit(wav)
    assert new == row | {"units": units.tolist(), "durations": durations.tolist()}


@pytest.mark.slow
def test_unusable_rows_are_refused_before_anything_is_encoded():
    rows = clips()
    vocoder = UnitVocoder.from_pretrained()
    for row, voice, message in (
        ({"path": "a.wav", "speaker": "eve"}, "slt", "a.wav has no text"),
        (rows[0] | {"speaker": None}, "slt", "expected speaker to be text, got None"),
        (rows[0] | {"text": "..."}, "slt", r"\.\w+: the text .* has no words"),
        (rows[0], "eve", "no speaker 'eve'"),
    ):
        with pytest.raises(UserError, match=message):
            next(evaluate_encoder(None, vocoder, [row], str, voice=voice))


@pytest.mark.slow
def test_the_encoder_of_another_vocoder_is_refused_before_anything_is_encoded():
    speech2unit = Speech2Unit(None, np.zeros((100, 2)))
    message = r"same number of units, got {'HuBERT': 100, 'vocoder': 200}: give the HuBERT with"
    with pytest.raises(UserError, match=message):
        next(
            evaluate_encoder(speech2unit, UnitVocoder.from_pretrained(), clips(), str, voice="slt")
        )


@pytest.mark.slow
def test_the_default_voice_of_another_vocoder_is_its_first_speaker(tmp_path, monkeypatch):
    UnitVocoder.from_pretrained().save_pretrained(tmp_path / "vocoder")
    voices = []

    def evaluate(speech2unit, vocoder, rows, recognise, *, voice, sentences):
        voices.append(voice)
        return []

    monkeypatch.setattr(encoder, "evaluate_encoder", evaluate)
    monkeypatch.setattr(recognisers, "WhisperRecogniser", lambda: str)
    (tmp_path / "m.jsonl").write_text(json.dumps(clips()[0]) + "\n")
    for more in ([], [f"--vocoder={tmp_path}/vocoder"], ["--voice=rms"]):
        eval_encoder.main([f"--manifest={tmp_path}/m.jsonl", *more])
    assert voices == ["slt", 0, "rms"]


@pytest.mark.slow
def test_a_recording_shorter_than_a_frame_is_named(tmp_path):
    save_audio(tmp_path / "short.wav", np.zeros(100, np.float32))
    row = clips()[0] | {"path": str(tmp_path / "short.wav")}
    vocoder = UnitVocoder.from_pretrained()
    with pytest.raises(UserError, match=r"short.wav is shorter than a frame of 25 ms"):
        next(evaluate_encoder(Speech2Unit.from_pretrained(), vocoder, [row], str, voice="slt"))
