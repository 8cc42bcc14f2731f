"""A tiny model that has learnt some dialogues by heart, and a server that answers with it."""

import contextlib
import dataclasses
import functools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
from flax import nnx

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.decoding.conversation import Conversation, SpeechModel
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.serving.app import Options, create_app
from speechgpt_jax.serving.limits import Limits
from speechgpt_jax.serving.server import Server
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tests.decoding.overfitted import learn_by_heart
from tests.serving.clips import CLIP, QUESTION

TOKENIZER = Tokenizer.from_pretrained(DEMO_TOKENIZER)

# Texts of the dialogues and units of their answers: about 0.6, 1.2 and 0.8 s of sound.
SUM, SUM_ANSWER = "what is two plus three?", "it is five."
GREETING = "good morning"
CLIP_UNITS = [3, 141, 59, 26, 5, 35]
SUM_UNITS = [8, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 28]
GREETING_UNITS = [31, 4, 15, 92, 65, 35, 89, 79]


@functools.cache
def speech_model(num_slots: int = 4, cache_size: int = 256) -> SpeechModel:
    """`language_model` with the shipped encoder and vocoder; a cache of one size compiles fast."""
    parts = TOKENIZER, Speech2Unit.from_pretrained(), UnitVocoder.from_pretrained()
    options = {"num_slots": num_slots, "context": 256, "cache_size": cache_size}
    return SpeechModel(language_model(), *parts, **options)


@functools.cache
def language_model() -> Llama:
    """The model: it answers the clip and the sum, transcribes the clip and says the greeting."""
    tokenizer, speech2unit = TOKENIZER, Speech2Unit.from_pretrained()
    units = units_to_text(speech2unit(load_audio(QUESTION))[0])
    sum_units = units_to_text(SUM_UNITS)
    dialogues = [
        prompts.SPEECH_TO_SPEECH.format(
            question_units=units,
            question=CLIP["text"],
            answer=CLIP["answer"],
            answer_units=units_to_text(CLIP_UNITS),
        ),
        prompts.SPEECH_TO_TEXT.format(
            question_units=units, question=CLIP["text"], answer=CLIP["answer"]
        ),
        prompts.TEXT_TO_SPEECH.format(question=SUM, answer=SUM_ANSWER, answer_units=sum_units),
        prompts.TEXT_TO_TEXT.format(question=SUM, answer=SUM_ANSWER),
        prompts.CROSS_MODAL.format(
            description=prompts.TRANSCRIBE, source=units, target=CLIP["text"]
        ),
        prompts.CROSS_MODAL.format(
            description=prompts.SPEAK, source=GREETING, target=units_to_text(GREETING_UNITS)
        ),
    ]
    rows = [
        [tokenizer.bos_id, *tokenizer.encode(prompts.DEFAULT_PREFIX + text), tokenizer.eos_id]
        for text in dialogues
    ]
    return learn_by_heart(rows, tokenizer.vocab_size)


def save_run(folder: Path) -> None:
    """Writes the model as a run that `--run` names."""
    model = language_model()
    arrays = checkpoints.flatten(nnx.state(model))
    parameters = ((name, np.asarray(array)) for name, array in arrays.items())
    checkpoints.save_parameters(folder, parameters, {"model": dataclasses.asdict(model.config)})
    TOKENIZER.save_pretrained(folder / "tokenizer")


@contextlib.contextmanager
def serving(
    *,
    limits: Limits | None = None,
    wait: bool = True,
    model: SpeechModel | None = None,
    speaker: str = "slt",
    max_new_tokens: int = 96,
    history_tokens: int = 0,
    **options,
) -> Iterator[str]:
    """Address of a server in a thread, which stops at the end; by default of `speech_model`."""
    limits = limits or Limits(audio_seconds=5, body_bytes=2**20, seconds=60)
    settings = Conversation(
        model or speech_model(),
        speaker=speaker,
        max_new_tokens=max_new_tokens,
        history_tokens=history_tokens,
    )
    app = create_app(settings, Options("tiny", limits=limits, **options))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = Server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            while wait and not is_ready(address):
                assert thread.is_alive(), "the server has ended"
                time.sleep(0.05)
            yield address
        finally:
            server.should_exit = True
            thread.join()


def is_ready(address: str, **options) -> bool:
    """Whether a server has warmed up; `options` are those of the HTTP client."""
    return status(address, "/readyz", **options) == 200


def status(address: str, path: str, **options) -> int:
    """Status of an answer; 0: nobody listens."""
    try:
        return httpx2.get(f"{address}{path}", **options).status_code
    except httpx2.TransportError:
        return 0


def metric(address: str, name: str) -> float:
    """The value of one of the server's metrics."""
    lines = httpx2.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def unit_seconds(units: list[int], speaker: str = "slt") -> list[float]:
    """Lengths of units in the vocoder's sound."""
    vocoder = speech_model().vocoder
    speakers = np.array([vocoder.config.speaker_index(speaker)])
    (durations,) = vocoder.predict_durations([np.asarray(units)], speakers)
    return [round(0.02 * int(number), 4) for number in durations]


def wait_for(condition, seconds: float = 10) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def is_sound(wav: np.ndarray, seconds: tuple[float, float]) -> bool:
    """Whether 16-kHz sound lasts between so many seconds and is not silent."""
    return seconds[0] <= len(wav) / 16_000 <= seconds[1] and bool(np.abs(wav).max() > 0.01)
