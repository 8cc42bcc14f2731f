"""A tiny LLaMA overfitted to one spoken dialogue, with the shipped speech encoder and vocoder."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from speechgpt_jax import prompts
from speechgpt_jax.decoding.conversation import Conversation, Reply, SpeechModel
from speechgpt_jax.decoding.events import Sound, Text, Transcript, Units
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, SentencePieceTokenizer
from speechgpt_jax.unit_text import units_in
from tests.decoding.conftest import ANSWER_UNITS

pytestmark = pytest.mark.slow


@pytest.fixture
def conversation(model):
    return Conversation(model, max_new_tokens=64)


def test_a_spoken_question_is_transcribed_and_answered_in_speech(conversation, question, wav):
    reply = conversation.answer(wav)
    assert reply.transcript == question["text"]
    assert reply.text == question["answer"]
    assert reply.units == ANSWER_UNITS
    whole = conversation.model.vocoder(ANSWER_UNITS)
    assert reply.wav.dtype == np.float32
    np.testing.assert_allclose(reply.wav, whole, atol=0.02 * np.abs(whole).max())


def test_events_come_in_the_order_of_the_chain(conversation, question, wav):
    events = list(conversation.ask(wav))
    order = [Transcript, Text, Units, Sound]
    kinds = [order.index(type(event)) for event in events]
    assert sorted(set(kinds)) == [0, 1, 2, 3]
    assert kinds[: kinds.index(3)] == sorted(kinds[: kinds.index(3)])
    assert "".join(e.text for e in events if isinstance(e, Text)) == question["answer"]


def test_other_requests_give_replies_of_the_right_kind(conversation, wav):
    """The model knows one dialogue only; the masks keep the forms all the same."""
    spoken = conversation.speak("good day")
    assert not spoken.text and spoken.units and len(spoken.wav) >= 320 * len(spoken.units)
    written = Reply.of(conversation.ask("what is two plus three?", aloud=False))
    assert not written.units and not written.transcript and not len(written.wav)
    assert not conversation.answer("Say it aloud. This is input: good day").text
    assert isinstance(conversation.transcribe(wav), str)


def test_the_beginning_of_a_long_recording_tells_that_it_is_too_long(untrained_run, wav):
    model = SpeechModel.from_run(untrained_run, num_slots=1, context=40)
    speech = np.resize(wav, 20 * SAMPLE_RATE)
    with pytest.raises(UserError, match=r"recording has 20 s, .* first 3 s .* context, 40 tokens"):
        model.unit_text(speech)
    # As much silence has few units.
    assert units_in(model.unit_text(np.zeros_like(speech)))


def test_a_seed_repeats_the_conversation(conversation):
    drawn = dataclasses.replace(conversation, sampling=Sampling(5.0, 0, 1.0), max_new_tokens=20)
    ask = lambda c: c.answer("what is it?", aloud=False)  # noqa: E731
    first, second = (dataclasses.replace(drawn, seed=3, history=[]) for _ in range(2))
    assert [ask(first).text, ask(first).text] == [ask(second).text, ask(second).text]
    assert ask(drawn).text != ask(drawn).text


def test_instructions_have_the_form_of_stage_2(conversation, monkeypatch):
    asked, submit = [], Conversation._submit

    def remember(self, prompt, form):
        asked.append((self.model.tokenizer.decode(prompt), form))
        return submit(self, prompt, form)

    monkeypatch.setattr(Conversation, "_submit", remember)
    reply = conversation.instruct("what is it?")
    [(prompt, form)] = asked
    assert prompt.endswith("[Human] : what is it? <eoh> [SpeechGPT] :") and form == "text"
    assert not reply.units and not conversation.history


def test_old_turns_go_first_and_the_prefix_stays(model):
    """Each remembered turn is read as long as there is room; `_with_history` gives the ids."""
    conversation = Conversation(model, max_new_tokens=8, history_tokens=40)
    for number in range(6):
        conversation.answer(f"question {number}?", aloud=False)
    assert len(conversation.history) == 6
    prompt = prompts.TEXT_TO_TEXT_PROMPT.format(question="and now?")
    alone = conversation._encode(prompt)
    ids = conversation._with_history(prompt)
    assert 0 < len(ids) - len(alone) <= 40
    text = model.tokenizer.decode(ids)
    assert text.startswith(prompts.DEFAULT_PREFIX.strip())
    assert "question 5" in text and "question 0" not in text
    more = dataclasses.replace(conversation, history_tokens=80)._with_history(prompt)
    assert len(more) > len(ids)
    assert dataclasses.replace(conversation, history_tokens=0)._with_history(prompt) == alone
    conversation.reset()
    assert conversation._with_history(prompt) == alone


def test_a_reply_that_is_left_early_is_cancelled_and_forgotten(conversation, wav):
    events = conversation.ask(wav)
    next(events)
    events.close()
    assert not conversation.history
    conversation.answer("what is it?", aloud=False)
    assert conversation.model.engine.num_busy == 0


def test_sound_shorter_than_a_frame(conversation):
    with pytest.raises(ValueError, match="399 samples are shorter than one frame"):
        conversation.answer(np.zeros(399, np.float32))


def test_a_question_longer_than_the_context(conversation):
    with pytest.raises(ValueError, match="longer than the context, 512 tokens"):
        conversation.answer("why? " * 400)


def test_a_text_of_megabytes_is_refused_before_it_is_tokenized(conversation, monkeypatch):
    monkeypatch.setattr(type(conversation.model.tokenizer), "encode", lambda *_: pytest.fail())
    for task in (conversation.answer, conversation.speak, conversation.instruct):
        with pytest.raises(UserError, match=r"the text, 4,000,\d+ characters, is longer than"):
            task("may " * 1_000_000)


def test_nothing_is_read_aloud_if_one_sentence_is_too_long(conversation):
    events = conversation.reading("good morning. " + "a" * 3000)
    with pytest.raises(UserError, match="longer than the context"):
        next(events)


def test_the_number_of_units_is_checked_before_the_model_is_loaded(model, tmp_path):
    """The folder has a tokenizer, but no checkpoint."""
    tokens = prompts.added_tokens(300)
    bare = SentencePieceTokenizer.from_files(DEMO_TOKENIZER / "tokenizer.model", tokens)
    bare.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="'tokenizer': 300, 'HuBERT': 200, 'vocoder': 200"):
        SpeechModel.from_run(tmp_path)


def test_parts_must_have_the_same_number_of_units(model):
    config = dataclasses.replace(VocoderConfig.tiny(), num_embeddings=100)
    vocoder = nnx.eval_shape(lambda: UnitVocoder(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="'HuBERT': 200, 'vocoder': 100"):
        SpeechModel(None, model.tokenizer, model.speech2unit, vocoder)
