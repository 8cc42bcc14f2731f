"""Written dialogues -> the four forms of chain of modality.

Their units come from a text-to-speech command or from a text-to-unit model.
"""

import dataclasses
import functools
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.corpus import text_to_speech
from speechgpt_jax.corpus.extract_units import Extractor
from speechgpt_jax.corpus.records import one_line, reason_against, record, rejected
from speechgpt_jax.corpus.sound import SoundOrReason, in_advance, load
from speechgpt_jax.corpus.summary import REJECTS
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.loading import build_llama
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import START, units_to_text

CHAIN_FORMS = {
    "speech_to_speech": prompts.SPEECH_TO_SPEECH,
    "speech_to_text": prompts.SPEECH_TO_TEXT,
    "text_to_speech": prompts.TEXT_TO_SPEECH,
    "text_to_text": prompts.TEXT_TO_TEXT,
}
# Texts that the text-to-unit model reads aloud at the same time.
SLOTS = 16

Utterance = tuple[str, str]  # text, voice
UnitsOrReason = Sequence[int] | str  # reduced units, or why there are none
Synthesizer = Callable[[list[Utterance]], list[UnitsOrReason]]


@dataclasses.dataclass(frozen=True)
class DialogueWriter:
    """Rows with `question` and `answer` -> lines of each of CHAIN_FORMS, and rejects.

    Attributes:
      synthesizer: utterances -> their units.
      question_voices: one of them is drawn for each question.
      answer_voice: the voice of every answer.
      prefix: the system prompt.
      max_answer_words: dialogues with longer answers are rejected.
    """

    synthesizer: Synthesizer
    question_voices: Sequence[str]
    answer_voice: str
    prefix: str
    max_answer_words: int

    def __call__(self, rows: list[dict]) -> dict[str, list[str]]:
        lines = {kind: [] for kind in (*CHAIN_FORMS, REJECTS)}
        reasons = [self._reason_against(row) for row in rows]
        usable = [row for row, reason in zip(rows, reasons) if not reason]
        utterances = [utterance for row in usable for utterance in self._utterances(row)]
        synthesized = iter(self.synthesizer(utterances))
        for row, reason in zip(rows, reasons):
            units: list[Any] = [] if reason else [next(synthesized), next(synthesized)]
            reason = reason or next((item for item in units if isinstance(item, str)), "")
            if reason:
                lines[REJECTS].append(rejected(row, reason))
                continue
            values = {
                "question": one_line(row["question"]),
                "answer": one_line(row["answer"]),
                "question_units": units_to_text(units[0]),
                "answer_units": units_to_text(units[1]),
            }
            for kind, template in CHAIN_FORMS.items():
                lines[kind].append(record(self.prefix, template, values))
        return lines

    def _reason_against(self, row: dict) -> str:
        words = len(row["answer"].split())
        if words > self.max_answer_words:
            return f"the answer has {words} words; --max_answer_words is {self.max_answer_words}"
        return reason_against(row["question"]) or reason_against(row["answer"])

    def _utterances(self, row: dict) -> tuple[Utterance, Utterance]:
        question, answer = one_line(row["question"]), one_line(row["answer"])
        # The same voice for the same question in every run.
        voice = random.Random(question).choice(self.question_voices)
        return (question, voice), (answer, self.answer_voice)


@dataclasses.dataclass(frozen=True)
class CommandSynthesizer:
    """A text-to-speech command, whose sound is encoded as units."""

    template: str
    extractor: Extractor

    def __call__(self, utterances: list[Utterance]) -> list[UnitsOrReason]:
        sound = in_advance(self._sound, utterances, threads=os.cpu_count() or 1)
        encoded = self.extractor.encode(sound)
        return [item if isinstance(item, str) else item[0].tolist() for item in encoded]

    def _sound(self, utterance: Utterance) -> SoundOrReason:
        text, voice = utterance
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            try:
                text_to_speech.synthesize(self.template, voice, text, wav)
            except text_to_speech.SynthesisError as error:
                return str(error)
            return load(str(wav))


@dataclasses.dataclass(frozen=True)
class ModelSynthesizer:
    """A text-to-unit model. It has one voice, so the voice of an utterance is ignored."""

    model: Llama
    tokenizer: Tokenizer
    max_new_tokens: int

    @classmethod
    def from_run(cls, run: str, max_new_tokens: int) -> "ModelSynthesizer":
        """Loads the newest model and the tokenizer of a run's folder."""
        tokenizer = Tokenizer.from_pretrained(f"{run}/tokenizer")
        return cls(checkpoints.load_model(run, build_llama), tokenizer, max_new_tokens)

    def __call__(self, utterances: list[Utterance]) -> list[UnitsOrReason]:
        all_prompts = [self._prompt(text) for text, _ in utterances]
        requests = [
            Request(prompt, self.max_new_tokens, self.tokenizer.stop_ids, sampling=GREEDY)
            for prompt in all_prompts
            if self._fits(prompt)
        ]
        answers = iter(self.engine.generate(requests))
        return [
            self._units(next(answers))
            if self._fits(prompt)
            else f"the text has {len(prompt)} tokens, too many for --max_new_tokens"
            f" {self.max_new_tokens} and a context of {self.engine.context}"
            for prompt in all_prompts
        ]

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine of the model."""
        return Engine(self.model, num_slots=SLOTS)

    def _fits(self, prompt: list[int]) -> bool:
        return len(prompt) + self.max_new_tokens <= self.engine.context

    def _prompt(self, text: str) -> list[int]:
        prompt = prompts.CROSS_MODAL_PROMPT.format(description=prompts.SPEAK, source=text)
        # White space before <sosp> has no tokens.
        return self.tokenizer.encode_dialogue(prompts.DEFAULT_PREFIX, prompt + START)[:-1]

    def _units(self, tokens: list[int]) -> UnitsOrReason:
        if len(tokens) == self.max_new_tokens:
            return f"the model wrote {len(tokens)} tokens without an end; see --max_new_tokens"
        units = self.tokenizer.template.parse(self.tokenizer.decode(tokens)).units
        return units or "the model wrote no units"
