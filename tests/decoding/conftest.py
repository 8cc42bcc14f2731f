"""A tiny LLaMA overfitted to one spoken dialogue, with the shipped speech encoder and vocoder."""

import dataclasses
import json

import jax
import pytest
from flax import nnx

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.decoding.conversation import SpeechModel
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.shipped import ASSETS, SHIPPED_VOCODER
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tests.decoding.overfitted import learn_by_heart
from tests.models.hugging_face import CONFIG

CLIPS = ASSETS / "corpus" / "clips"
ANSWER_UNITS = [3, 141, 59, 26, 5, 35]


@pytest.fixture(scope="session")
def question():
    rows = json.loads((CLIPS / "clips.json").read_text())
    return next(row for row in rows if row["kind"] == "question")


@pytest.fixture(scope="session")
def wav(question):
    return load_audio(CLIPS / question["file"])


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """A run of a small model that was never trained."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    parameters = checkpoints.flatten(nnx.state(Llama(config, rngs=nnx.Rngs(0)))).items()
    metadata = {"model": dataclasses.asdict(config)}
    checkpoints.save_parameters(folder, jax.device_get(list(parameters)), metadata)
    return folder


@pytest.fixture(scope="session")
def model(question, wav):
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
    model = learn_by_heart([[tokenizer.bos_id, *ids, tokenizer.eos_id]], tokenizer.vocab_size)
    vocoder = UnitVocoder.from_pretrained(SHIPPED_VOCODER)
    return SpeechModel(model, tokenizer, speech2unit, vocoder, num_slots=2, context=512)
