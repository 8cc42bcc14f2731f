"""tools.eval_vocoder reports what jiwer and speechmos say about the same sound."""

import json

import jiwer
import numpy as np
import pytest
from speechmos import dnsmos

from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import recognisers
from speechgpt_jax.evaluation.metrics import check_references, normalize, wer
from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
from speechgpt_jax.evaluation.vocoder import evaluate_vocoder, naturalness
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from tools import eval_vocoder

pytestmark = pytest.mark.slow

CLIPS = ASSETS / "corpus" / "clips"


@pytest.fixture(scope="module")
def rows():
    """Two sentences of each of two speakers."""
    clips = json.loads((CLIPS / "clips.json").read_text())
    by_speaker = ([clip for clip in clips if clip["speaker"] == name] for name in ("slt", "rms"))
    chosen = [clip for clips_of_one in by_speaker for clip in clips_of_one[:2]]
    speech2unit = Speech2Unit.from_pretrained()
    rows = []
    for clip in chosen:
        path = str(CLIPS / clip["file"])
        units, durations = (values.tolist() for values in speech2unit(load_audio(path)))
        row = {"path": path, "text": clip["text"], "speaker": clip["speaker"]}
        rows.append(row | {"units": units, "durations": durations})
    return rows


@pytest.fixture(scope="module")
def vocoder():
    return UnitVocoder.from_pretrained()


def test_words_and_their_error_rate():
    assert normalize("What's Two, plus... two?") == "what's two plus two"
    # Of six words, two are replaced.
    references = ["What's two plus two?", "Good morning."]
    transcripts = ["what's two plus too", "morning morning"]
    assert wer(references, transcripts)["wer"] == pytest.approx(2 / 6)
    assert wer(["one two", "..."], ["one, TWO!", "a"])["wer"] == 0
    with pytest.raises(UserError, match=r"^b: the text '\.\.\.' has no words"):
        check_references([{"path": "a", "text": "one"}, {"path": "b", "text": "..."}])


def test_the_tool_reports_what_jiwer_and_speechmos_say(
    rows, vocoder, tmp_path, monkeypatch, capsys
):
    manifest = tmp_path / "test.jsonl"
    row = rows[0]
    manifest.write_text(json.dumps(row) + "\n")
    transcripts = {}

    class Recogniser(WhisperRecogniser):
        """Whisper, which takes seconds for each sound; its transcripts are kept."""

        def __call__(self, wav):
            transcripts[wav.tobytes()] = super().__call__(wav)
            return transcripts[wav.tobytes()]

    monkeypatch.setattr(recognisers, "WhisperRecogniser", Recogniser)
    arguments = [f"--vocoder={ASSETS / 'vocoder'}", f"--manifest={manifest}", "--sentences=1"]
    eval_vocoder.main(arguments)
    reported = {
        (speaker, source): (float(rate), float(mos))
        for speaker, source, rate, mos in (
            (line[:10].strip(), line[10:26].strip(), line[26:34], line[34:])
            for line in capsys.readouterr().out.splitlines()[1:]
        )
    }
    text, units, durations = normalize(row["text"]), row["units"], row["durations"]
    spoken = {
        "original": load_audio(row["path"]),
        "units": vocoder(units, durations, "slt"),
        "reduced units": vocoder(units, None, "slt"),
    }
    for source, wav in spoken.items():
        counts = jiwer.process_words(text, normalize(transcripts[wav.tobytes()]))
        errors = counts.substitutions + counts.deletions + counts.insertions
        rate = 100 * errors / len(text.split())
        score = dnsmos.run(np.clip(wav, -1, 1), 16_000)["ovrl_mos"]
        assert reported["slt", source] == (
            pytest.approx(rate, abs=0.051),
            pytest.approx(score, abs=0.02),
        )
    assert len(reported) == len(transcripts) == 3
    assert reported["slt", "original"][0] < 20


def test_sentences_are_recognised_one_by_one(rows, vocoder):
    lengths = []

    def recognise(wav):
        lengths.append(len(wav))
        return "a"

    scores = list(evaluate_vocoder(vocoder, rows, recognise, sentences=1, speaker="kal16"))
    assert [(score.speaker, score.source) for score in scores] == [
        (name, source)
        for name in ("rms", "slt")
        for source in ("original", "units", "reduced units")
    ]
    firsts = [rows[2], rows[0]]
    assert lengths[0::3] == [len(load_audio(row["path"])) for row in firsts]
    assert lengths[1::3] == [320 * sum(row["durations"]) for row in firsts]
    assert all(1 <= score.naturalness <= 5 for score in scores)


def test_refuses_rows_and_speakers(rows, vocoder):
    row = {name: value for name, value in rows[0].items() if name != "text"}
    with pytest.raises(UserError, match="has no text"):
        next(evaluate_vocoder(vocoder, [row], str))
    for changes, message in (
        ({"text": None}, "expected text to be text, got None"),
        ({"text": "..."}, r"\.\w+: the text '\.\.\.' has no words"),
        ({"units": [9999], "durations": [1]}, r"\.\w+: unit 9999 is not among"),
        ({"units": ["a"], "durations": [1]}, r"\.\w+: expected at least one unit"),
        ({"units": [1], "durations": [10**12]}, r"\.\w+: the durations are 1e\+12 codes"),
        ({"speaker": 1}, "expected speaker to be text, got 1"),
        ({"path": "none.wav"}, "none.wav of the manifest isn't there"),
    ):
        with pytest.raises(UserError, match=message):
            next(evaluate_vocoder(vocoder, [rows[0] | changes], str))
    with pytest.raises(UserError, match="no speaker 'eve'"):
        next(evaluate_vocoder(vocoder, rows, str, speaker="eve"))
    with pytest.raises(UserError, match="no speaker 'eve'"):
        next(evaluate_vocoder(vocoder, [rows[0] | {"speaker": "eve"}], str))


def test_naturalness_is_the_mean_of_dnsmos(rows):
    wavs = [load_audio(row["path"]) for row in rows[:2]]
    expected = np.mean([dnsmos.run(wav, 16_000)["ovrl_mos"] for wav in wavs])
    assert naturalness(wavs) == pytest.approx(expected)
