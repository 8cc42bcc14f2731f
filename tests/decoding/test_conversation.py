"""A tiny LLaMA overfitted to one spoken dialogue, with the shipped speech encoder and vocoder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from speechgpt_jax import prompts
from speechgpt_jax.decoding.conversation import HUBERT, VOCODER, Conversation
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tests.sizes import llama

CLIPS = HUBERT.parent / "corpus" / "clips"
ANSWER_UNITS = [3, 141, 59, 26, 5, 35]


@pytest.fixture(scope="module")
def question():
    rows = json.loads((CLIPS / "clips.json").read_text())
    return next(row for row in rows if row["kind"] == "question")


@pytest.fixture(scope="module")
def wav(question):
    return load_audio(CLIPS / question["file"])


@pytest.fixture(scope="module")
def conversation(question, wav):
    tokenizer = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    speech2unit = Speech2Unit.from_pretrained()
    units, _ = speech2unit(wav)
    dialogue = prompts.SPEECH_TO_SPEECH.format(
        question_units=units_to_text(units),
        question=question["text"],
        answer=question["answer"],
        answer_units=units_to_text(ANSWER_UNITS),
    )
    ids = tokenizer.encode(prompts.DEFAULT_PREFIX + dialogue)
    return Conversation(
        learn_by_heart([tokenizer.bos_id, *ids, tokenizer.eos_id], tokenizer.vocab_size),
        tokenizer,
        speech2unit,
        UnitVocoder.from_pretrained(VOCODER),
        max_new_tokens=64,
    )


def learn_by_heart(ids: list[int], vocab_size: int) -> Llama:
    config = dataclasses.replace(
        llama("tiny", vocab_size),
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
    )
    graphdef, params = nnx.split(Llama(config, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(3e-3)
    tokens = jnp.array([ids])

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            model = nnx.merge(graphdef, params)
            logits = model.unembed(model(tokens[:, :-1]))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return losses.mean()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(150):
        params, opt_state = step(params, opt_state)
    return nnx.merge(graphdef, params)


@pytest.mark.slow
def test_a_spoken_question_is_transcribed_and_answered_in_speech(conversation, question, wav):
    reply = conversation.answer(wav)
    assert reply.transcript == question["text"]
    assert reply.text == question["answer"]
    assert reply.units == ANSWER_UNITS
    assert reply.wav.dtype == np.float32 and len(reply.wav) >= 320 * len(ANSWER_UNITS)
    assert np.abs(reply.wav).max() <= 1


@pytest.mark.slow
def test_other_requests_give_replies_of_the_right_kind(conversation, wav):
    for reply in (conversation.answer("what is two plus three?"), conversation.speak("good day")):
        assert isinstance(reply.text, str) and reply.wav.dtype == np.float32
    assert isinstance(conversation.transcribe(wav), str)


def test_sound_shorter_than_a_frame(conversation):
    with pytest.raises(ValueError, match="399 samples are shorter than one frame"):
        conversation.answer(np.zeros(399, np.float32))


def test_parts_must_have_the_same_number_of_units(conversation):
    config = dataclasses.replace(VocoderConfig.tiny(), num_embeddings=100)
    vocoder = nnx.eval_shape(lambda: UnitVocoder(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="'HuBERT': 200, 'vocoder': 100"):
        dataclasses.replace(conversation, vocoder=vocoder)
