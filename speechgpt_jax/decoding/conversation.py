"""Talks with a trained model: sound or text in; transcript, text, units and sound out."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
from flax import nnx

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import ASSETS
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED as HUBERT
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_to_text

VOCODER = ASSETS / "vocoder"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model made of a request; parts that it did not write are empty.

    Attributes:
      transcript: what it heard, for a spoken question.
      text: its answer in writing.
      units: its answer as units.
      wav: those units as sound, float32 [samples] at 16 kHz.
    """

    transcript: str
    text: str
    units: list[int]
    wav: np.ndarray


@dataclasses.dataclass(frozen=True)
class Conversation:
    """conversation = Conversation.from_run("runs/demo/stage3"); conversation.answer(wav).text"""

    model: Llama
    tokenizer: Tokenizer
    speech2unit: Speech2Unit
    vocoder: UnitVocoder
    speaker: int | str = 0
    prefix: str = prompts.DEFAULT_PREFIX
    sampling: Sampling = GREEDY
    max_new_tokens: int = 384

    def __post_init__(self):
        counts = {
            "tokenizer": len(self.tokenizer.unit_ids),
            "HuBERT": self.speech2unit.num_units,
            "vocoder": self.vocoder.config.num_embeddings,
        }
        if len(set(counts.values())) > 1:
            raise UserError(f"These must have the same number of units, but have {counts}.")

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike,
        *,
        hubert: str | os.PathLike = HUBERT,
        vocoder: str | os.PathLike = VOCODER,
        **kwargs,
    ) -> "Conversation":
        """The newest checkpoint of a run (adapters on their base), with ears and a voice.

        Raises:
          UserError: a folder is missing or damaged, or they disagree on the number of units.
        """
        tokenizer = Tokenizer.from_pretrained(pathlib.Path(path) / "tokenizer")
        model = checkpoints.load_model(path, build_llama)
        speech2unit = Speech2Unit.from_pretrained(hubert)
        return cls(model, tokenizer, speech2unit, UnitVocoder.from_pretrained(vocoder), **kwargs)

    def answer(self, question: str | np.ndarray, *, aloud: bool = True) -> Reply:
        """Answers a question, written or spoken (float32 [samples] at 16 kHz).

        A spoken question is answered by the chain of modality: what was heard, the answer in
        writing, the answer in units.
        """
        if isinstance(question, str):
            template = prompts.TEXT_TO_SPEECH_PROMPT if aloud else prompts.TEXT_TO_TEXT_PROMPT
            return self._reply(template.format(question=question))
        template = prompts.SPEECH_TO_SPEECH_PROMPT if aloud else prompts.SPEECH_TO_TEXT_PROMPT
        return self._reply(template.format(question_units=self.unit_text(question)))

    def transcribe(self, wav: np.ndarray, description: str = prompts.TRANSCRIBE) -> str:
        """The words of a recording, float32 [samples] at 16 kHz."""
        prompt = prompts.CROSS_MODAL_PROMPT.format(
            description=description, source=self.unit_text(wav)
        )
        return self._reply(prompt).text

    def speak(self, text: str, description: str = prompts.SPEAK) -> Reply:
        """Says a text."""
        return self._reply(prompts.CROSS_MODAL_PROMPT.format(description=description, source=text))

    def unit_text(self, wav: np.ndarray) -> str:
        """Sound as the model reads it; UserError where there is too little of it."""
        units, _ = self.speech2unit(wav)
        if not len(units):
            raise UserError(
                f"{len(wav)} samples are shorter than one frame; expected at least 400 (25 ms)."
            )
        return units_to_text(units)

    def complete(self, prompt: str) -> str:
        """Decodes what follows the prefix and `prompt`, up to the end of the answer."""
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(self.prefix + prompt)]
        tokens, lengths = generate(
            self.model,
            [ids],
            max_new_tokens=self.max_new_tokens,
            stop_ids=[self.tokenizer.eos_id],
            sampling=self.sampling,
            key=jax.random.key(0),
        )
        return self.tokenizer.decode(tokens[0, : lengths[0]])

    def _reply(self, prompt: str) -> Reply:
        response = prompts.parse_response(self.complete(prompt))
        wav = self.vocoder(response.units, speaker=self.speaker) if response.units else np.zeros(0)
        return Reply(response.question, response.text, response.units, wav.astype(np.float32))


def build_llama(fields: dict) -> Llama:
    """The model whose config has these fields, as saved beside a checkpoint."""
    return Llama(LlamaConfig.from_dict(fields), rngs=nnx.Rngs(0))
