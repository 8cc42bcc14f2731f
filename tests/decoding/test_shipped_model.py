"""The shipped model, asked with recordings of the test, and the tool that packs a run like it."""

import json

import numpy as np
import pytest

from speechgpt_jax import checkpoints
from speechgpt_jax.decoding.conversation import Conversation, SpeechModel
from speechgpt_jax.evaluation.metrics import normalize, wer
from speechgpt_jax.shipped import ASSETS, SHIPPED_MODEL
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.tokenizer import SentencePieceTokenizer
from tests.serving import tiny
from tools import pack_run

pytestmark = pytest.mark.slow

CLIPS = ASSETS / "corpus" / "clips"


def clips(kind):
    rows = json.loads((CLIPS / "clips.json").read_text())
    return [row for row in rows if row["kind"] == kind and row["speaker"] != "awb"]


@pytest.fixture(scope="module")
def conversation():
    return Conversation(SpeechModel.from_run(SHIPPED_MODEL, num_slots=1), speaker="slt")


def test_spoken_questions_are_answered_in_speech(conversation):
    questions = clips("question")
    replies = [conversation.answer(load_audio(CLIPS / row["file"])) for row in questions]
    transcripts = [normalize(reply.transcript) for reply in replies]
    assert wer([normalize(row["text"]) for row in questions], transcripts)["wer"] < 0.1
    assert all(reply.text and len(reply.wav) > 4_000 for reply in replies)
    right = [normalize(r.text) == normalize(row["answer"]) for r, row in zip(replies, questions)]
    assert np.mean(right) >= 0.4


def test_it_reads_aloud_and_transcribes(conversation):
    reply = conversation.speak("good morning, my friend.")
    assert reply.units and not reply.text
    row = clips("plain")[0]
    assert conversation.transcribe(load_audio(CLIPS / row["file"]))


def test_a_run_that_is_not_packed_to_the_end_leaves_nothing(tmp_path, monkeypatch):
    tiny.save_run(tmp_path / "run")

    def fail(tokenizer, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(SentencePieceTokenizer, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        pack_run.main([str(tmp_path / "run"), str(tmp_path / "packed")])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_packed_run_answers_like_the_run(tmp_path):
    tiny.save_run(tmp_path / "run")
    pack_run.main([str(tmp_path / "run"), str(tmp_path / "packed")])
    shapes = checkpoints.Parameters(tmp_path / "run").shapes
    one, other = (
        checkpoints.Parameters(tmp_path / name).restore(shapes) for name in ("run", "packed")
    )
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    model = SpeechModel.from_run(tmp_path / "packed", num_slots=1)
    assert Conversation(model, speaker="slt").answer(tiny.SUM, aloud=False).text == tiny.SUM_ANSWER
