"""Conversation with a trained model: speech or text in; transcript, text, units and speech out."""

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
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED as HUBERT
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_to_text

VOCODER = ASSETS / "vocoder"


@dataclasses.dataclass(frozen=True)
class Reply:
    """The model's answer; parts that it did not write are empty.

    Attributes:
      transcript: its transcript of a spoken question.
      text: its answer as text.
      units: its answer as reduced units.
      wav: waveform of the units, float32 [samples] at 16 kHz.
    """

    transcript: str
    text: str
    units: list[int]
    wav: np.ndarray


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A model with its tokenizer, speech encoder and vocoder.

        conversation = Conversation.from_run("runs/demo/stage3")
        conversation.answer(wav).text

    Attributes:
      speaker: name or index of the vocoder's speaker.
      prefix: system prompt before the dialogue.
      sampling: how tokens are drawn.
      max_new_tokens: longest answer, in tokens.
    """

    model: Llama
    tokenizer: Tokenizer
    speech2unit: Speech2Unit
    vocoder: UnitVocoder
    speaker: int | str = 0
    prefix: str = prompts.DEFAULT_PREFIX
    sampling: Sampling = GREEDY
    max_new_tokens: int = 384

    def __post_init__(self):
        check_number("max_new_tokens", self.max_new_tokens, at_least=1)
        self.vocoder.config.speaker_index(
            self.speaker
        )  # Raises a UserError for an unknown speaker.
        counts = {
            "tokenizer": len(self.tokenizer.unit_ids),
            "HuBERT": self.speech2unit.num_units,
            "vocoder": self.vocoder.config.num_embeddings,
        }
        if len(set(counts.values())) > 1:
            raise UserError(
                f"tokenizer, HuBERT and vocoder must have the same number of units, got {counts}:"
                " give the HuBERT and vocoder with which the run's units were made."
            )

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike,
        *,
        hubert: str | os.PathLike = HUBERT,
        vocoder: str | os.PathLike = VOCODER,
        **kwargs,
    ) -> "Conversation":
        """Loads the newest checkpoint of a run, a speech encoder and a vocoder.

        Args:
          path: folder of the run; an adapter is loaded with its base.
          hubert, vocoder: folders of HuBERT with its centroids and of the unit vocoder.
          kwargs: other fields of `Conversation`.

        Raises:
          UserError: a folder is missing or damaged, or their numbers of units differ.
        """
        tokenizer = Tokenizer.from_pretrained(pathlib.Path(path) / "tokenizer")
        model = checkpoints.load_model(path, build_llama)
        speech2unit = Speech2Unit.from_pretrained(hubert)
        return cls(model, tokenizer, speech2unit, UnitVocoder.from_pretrained(vocoder), **kwargs)

    def answer(self, question: str | np.ndarray, *, aloud: bool = True) -> Reply:
        """Answers a question, written or spoken (float32 [samples] at 16 kHz).

        A spoken question is answered by the chain of modality: transcript of the question, answer
        as text, answer as units. Without `aloud` the answer has no units.
        """
        if isinstance(question, str):
            template = prompts.TEXT_TO_SPEECH_PROMPT if aloud else prompts.TEXT_TO_TEXT_PROMPT
            return self._reply(template.format(question=question))
        template = prompts.SPEECH_TO_SPEECH_PROMPT if aloud else prompts.SPEECH_TO_TEXT_PROMPT
        return self._reply(template.format(question_units=self.unit_text(question)))

    def transcribe(self, wav: np.ndarray, description: str = prompts.TRANSCRIBE) -> str:
        """Transcript of a recording, float32 [samples] at 16 kHz."""
        prompt = prompts.CROSS_MODAL_PROMPT.format(
            description=description, source=self.unit_text(wav)
        )
        return self._reply(prompt).text

    def speak(self, text: str, description: str = prompts.SPEAK) -> Reply:
        """Reads a text aloud: a reply with units and waveform."""
        return self._reply(prompts.CROSS_MODAL_PROMPT.format(description=description, source=text))

    def unit_text(self, wav: np.ndarray) -> str:
        """Unit text of a recording, float32 [samples] at 16 kHz.

        Raises:
          UserError: it is shorter than one frame.
        """
        units, _ = self.speech2unit(wav)
        if not len(units):
            raise UserError(
                f"{len(wav)} samples are shorter than one frame; expected at least 400 (25 ms)."
            )
        return units_to_text(units)

    def complete(self, prompt: str) -> str:
        """The text that the model writes after the prefix and `prompt`."""
        ids = self.tokenizer.encode_prompt(self.prefix + prompt)
        tokens, lengths = generate(
            self.model,
            [ids],
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
            sampling=self.sampling,
            key=jax.random.key(0),
        )
        return self.tokenizer.decode(tokens[0, : lengths[0]])

    def _reply(self, prompt: str) -> Reply:
        response = prompts.parse_response(self.complete(prompt))
        wav = self.vocoder(response.units, speaker=self.speaker) if response.units else np.zeros(0)
        return Reply(response.question, response.text, response.units, wav.astype(np.float32))


def build_llama(fields: dict) -> Llama:
    """A model from the fields of its LlamaConfig, which checkpoints hold as metadata."""
    return Llama(LlamaConfig.from_dict(fields), rngs=nnx.Rngs(0))
