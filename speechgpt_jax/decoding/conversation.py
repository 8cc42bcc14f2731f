"""Conversation with a trained model: speech or text in; transcript, text, units and speech out.

model = SpeechModel.from_run("runs/demo/stage3")
conversation = Conversation(model, speaker="slt")
for event in conversation.ask(wav):              # While it is written.
    ...
conversation.answer("what is it?").text          # At once.
"""

import dataclasses
import os
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from speechgpt_jax import prompts
from speechgpt_jax.decoding.defaults import MAX_NEW_TOKENS
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.events import (
    Event,
    Sound,
    Text,
    Transcript,
    Units,
    text_and_unit_events,
    with_sound,
)
from speechgpt_jax.decoding.history import answer_text, turn_text
from speechgpt_jax.decoding.loading import load_llama
from speechgpt_jax.decoding.masks import ANY, Masks
from speechgpt_jax.decoding.remote import RemoteEngine
from speechgpt_jax.decoding.requests import Answer, Request
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.decoding.sentences import sentences
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.shipped import SHIPPED_HUBERT, SHIPPED_VOCODER
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.recordings import HOP
from speechgpt_jax.speech.same_units import check_same_units
from speechgpt_jax.speech.vocoder.streaming import READY, stream
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import START, units_to_text

# A recording with more frames than this per token of the context is checked by its beginning before
# all of it is encoded. Speech has a unit for every second or third frame.
_BEGINNING = 4

Question = str | np.ndarray  # A text, or a recording: float32 [samples] at 16 kHz.


class SpeechModel:
    """A model with its tokenizer, speech encoder and vocoder; many conversations can share it."""

    def __init__(
        self,
        model: Llama | str,
        tokenizer: Tokenizer,
        speech2unit: Speech2Unit,
        vocoder: UnitVocoder,
        **kwargs,
    ):
        """
        Args:
          model: the language model, or the address of a server that runs its export.
          tokenizer: its tokenizer.
          speech2unit: speech encoder.
          vocoder: unit vocoder.
          kwargs: other arguments of `Engine` or `RemoteEngine`.

        Raises:
          UserError: their numbers of units differ, or the server can't be reached.
        """
        check_same_units(speech2unit, vocoder, tokenizer=len(tokenizer.unit_ids))
        self.tokenizer, self.speech2unit, self.vocoder = tokenizer, speech2unit, vocoder
        self.masks = Masks(tokenizer)
        self.engine: Engine | RemoteEngine = (
            RemoteEngine(model, tokenizer, self.masks, **kwargs)
            if isinstance(model, str)
            else Engine(model, masks=self.masks.table, **kwargs)
        )

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike,
        *,
        server: str | None = None,
        hubert: str | os.PathLike = SHIPPED_HUBERT,
        vocoder: str | os.PathLike = SHIPPED_VOCODER,
        devices: int | None = None,
        **kwargs,
    ) -> "SpeechModel":
        """Loads the newest checkpoint of a run, a speech encoder and a vocoder.

        Args:
          path: folder of the run; an adapter is loaded with its base.
          server: address of a server that runs the run's export; its weights are then not loaded.
          hubert, vocoder: folders of HuBERT with its centroids and of the unit vocoder.
          devices: number of this process's devices over which the language model is sharded.
          kwargs: other arguments of `Engine` or `RemoteEngine`.

        Raises:
          UserError: a folder is missing or damaged, their numbers of units differ, or the server
            can't be reached.
        """
        tokenizer = Tokenizer.from_pretrained(epath.Path(path) / "tokenizer")
        speech2unit = Speech2Unit.from_pretrained(hubert)
        vocoder = UnitVocoder.from_pretrained(vocoder)
        # Loading the model may take minutes.
        check_same_units(speech2unit, vocoder, tokenizer=len(tokenizer.unit_ids))
        if server is not None:
            return cls(server, tokenizer, speech2unit, vocoder, **kwargs)
        numerics = {name: kwargs[name] for name in ("dtype", "int8") if name in kwargs}
        model, mesh = load_llama(path, devices, **numerics)
        return cls(model, tokenizer, speech2unit, vocoder, mesh=mesh, **kwargs)

    def warm_up(self, seconds: float) -> None:
        """Compiles all programs, those of the encoder for recordings of up to `seconds`."""
        self.engine.warm_up()
        self.speech2unit.warm_up(seconds)
        for _ in stream(self.vocoder, [range(2 * READY)]):
            pass

    def encode(self, prefix: str, dialogue: str) -> list[int]:
        """Token ids of a system prompt and a dialogue, or its beginning.

        Raises:
          UserError: they have more characters than the longest tokens can hold in the context.
            Tokenizing a text of megabytes takes seconds and stops all other threads.
        """
        self.check_size(prefix, dialogue)
        return self.tokenizer.encode_dialogue(prefix, dialogue)

    def check_size(self, *texts: str) -> None:
        """Raises a UserError if texts have more characters than the context can hold."""
        characters, context = sum(map(len, texts)), self.engine.context
        if characters > context * self.masks.longest_token:
            raise UserError(
                f"the text, {characters:,} characters, is longer than the context, {context:,}"
                " tokens: give a shorter one."
            )

    def unit_text(self, wav: np.ndarray) -> str:
        """Unit text of a recording, float32 [samples] at 16 kHz.

        Raises:
          UserError: it is shorter than one frame, or far too long for the context.
        """
        self._check_beginning(wav)
        units, _ = self.speech2unit(wav)
        if not len(units):
            raise UserError(
                f"{len(wav)} samples are shorter than one frame; expected at least 400 (25 ms)."
            )
        return units_to_text(units)

    def _check_beginning(self, wav: np.ndarray) -> None:
        """Raises a UserError if the beginning of a long recording alone fills the context.

        Its whole length says nothing: an hour of silence may be a single unit.
        """
        context = self.engine.context
        samples = _BEGINNING * context * HOP
        if len(wav) > samples and len(self.speech2unit(wav[:samples])[0]) > context:
            raise UserError(
                f"the recording has {len(wav) / SAMPLE_RATE:.0f} s, and the units of its first"
                f" {samples / SAMPLE_RATE:.0f} s are longer than the context, {context} tokens:"
                " give a shorter recording."
            )


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

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Reply":
        """The whole reply of a stream of events."""
        transcript, text, units, wavs = "", "", [], [np.zeros(0, np.float32)]
        for event in events:
            match event:
                case Transcript():
                    transcript += event.text
                case Text():
                    text += event.text
                case Units():
                    units += event.units
                case Sound():
                    wavs.append(event.wav)
        return cls(transcript, text, units, np.concatenate(wavs))


@dataclasses.dataclass
class Conversation:
    """Turns of a user and a model.

    Attributes:
      model: the model with its encoder and vocoder.
      speaker: name or index of the vocoder's speaker.
      prefix: system prompt before the dialogue.
      sampling: how tokens are drawn.
      seed: the same seed gives the same words and units; None: new ones every time. Samples of the
        sound also depend on when the units arrive.
      max_new_tokens: longest reply, in tokens.
      history_tokens: most tokens of earlier turns that the model reads; the oldest are dropped
        first. Models that were trained on single questions, as those of all our recipes, answer
        best without.
      history: the earlier turns, as text.
      speed: rate of speech, relative to that of the vocoder.
      has_sound: whether units are synthesized.
      answers: answers of the engine that the last reply consists of: one, or one for each sentence
        of a text that was read aloud.
    """

    model: SpeechModel
    speaker: int | str = 0
    prefix: str = prompts.DEFAULT_PREFIX
    sampling: Sampling = GREEDY
    seed: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    history_tokens: int = 0
    history: list[str] = dataclasses.field(default_factory=list)
    speed: float = 1.0
    has_sound: bool = True
    answers: list[Answer] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self):
        check_number("max_new_tokens", self.max_new_tokens, at_least=1)
        check_number("history_tokens", self.history_tokens, at_least=0)
        check_number("speed", self.speed, above=0)
        # Raises a UserError for an unknown speaker.
        self.model.vocoder.config.speaker_index(self.speaker)

    @property
    def in_progress(self) -> Answer | None:
        """The answer in progress, or the last one; it can be cancelled from any thread."""
        return self.answers[-1] if self.answers else None

    def ask(self, question: Question, *, aloud: bool = True) -> Generator[Event]:
        """Events of the reply to a question, written or spoken; the turn is remembered.

        A spoken question is answered by the chain of modality: transcript of the question, answer
        as text, answer as units. Without `aloud` the answer has no units. A text that says "this is
        input:", as the training data do, is a task if `aloud`: what follows is read aloud.

        Leaving the iteration early cancels the reply, of which nothing is remembered.
        """
        if aloud and isinstance(question, str) and (task := prompts.split_request(question)):
            description, text = task
            yield from self.speaking(text, description or prompts.SPEAK)
            return
        prompt, form = self._prompt(question, aloud)
        tokens: list[int] = []
        yield from self._events(self._with_history(prompt), form, tokens)
        tokenizer = self.model.tokenizer
        self._remember_response(prompt, tokenizer.template.answer_in(tokenizer.decode(tokens)))

    def remember(self, question: Question, text: str, units: Sequence[int] = ()) -> None:
        """Adds a turn that was answered elsewhere, by a text and perhaps by units too.

        The transcript of a spoken question is not known, so its answer follows at once.
        """
        prompt, _ = self._prompt(question, aloud=bool(units))
        is_begun = prompt.endswith(prompts.TEXT_ANSWER)
        response = answer_text(text, units)
        self._remember_response(
            prompt, response if is_begun else f"{prompts.TEXT_ANSWER} {response}"
        )

    def _remember_response(self, prompt: str, response: str) -> None:
        self.history.append(turn_text(prompt, response))

    def _prompt(self, question: Question, aloud: bool) -> tuple[str, str]:
        """The prompt of a question, and the form of its answer."""
        if isinstance(question, str):
            template, form = (
                (prompts.TEXT_TO_SPEECH_PROMPT, "text_to_speech")
                if aloud
                else (prompts.TEXT_TO_TEXT_PROMPT, "text")
            )
            return template.format(question=question) + f" {prompts.TEXT_ANSWER}", form
        template, form = (
            (prompts.SPEECH_TO_SPEECH_PROMPT, "speech_to_speech")
            if aloud
            else (prompts.SPEECH_TO_TEXT_PROMPT, "speech_to_text")
        )
        return template.format(question_units=self.model.unit_text(question)), form

    def transcribing(
        self, wav: np.ndarray, description: str = prompts.TRANSCRIBE
    ) -> Generator[Event]:
        """Events of the transcription of a recording; the turn is not remembered."""
        source = self.model.unit_text(wav)
        prompt = prompts.CROSS_MODAL_PROMPT.format(description=description, source=source)
        return self._events(self._encode(prompt), "text", [])

    def speaking(self, text: str, description: str = prompts.SPEAK) -> Generator[Event]:
        """Events of reading a text aloud; the turn is not remembered."""
        return self._events(self._speaking_prompt(text, description), "units", [])

    def _speaking_prompt(self, text: str, description: str = prompts.SPEAK) -> list[int]:
        prompt = prompts.CROSS_MODAL_PROMPT.format(description=description, source=text)
        # White space before <sosp> has no tokens.
        return self._encode(prompt + START)[:-1]

    def reading(self, text: str) -> Generator[Event]:
        """Events of reading a text of any length aloud, one sentence after the other.

        Models learn to read sentences, and an answer has at most `max_new_tokens`.
        """
        earlier: list[Answer] = []
        all_prompts = [self._speaking_prompt(sentence) for sentence in sentences(text)]
        for prompt in all_prompts:  # Before the first one sounds.
            self.model.engine.check(self._request(prompt, "units"))
        for prompt in all_prompts:
            events = self._events(prompt, "units", [])
            self.answers = earlier = [*earlier, *self.answers]
            yield from events
            if self.answers[-1].finish_reason == "cancelled":
                return

    def cut_sentences(self, text: str) -> list[str]:
        """Sentences of a text just read aloud that `max_new_tokens` has cut off."""
        pairs = zip(sentences(text), self.answers)
        return [sentence for sentence, answer in pairs if answer.finish_reason == "length"]

    def instruct(self, text: str) -> Reply:
        """The answer to a written instruction, in the form of stage 2's data: no chain of modality.

        An instruction-tuned base model without speech training answers in this form. The turn is
        not remembered.
        """
        prompt = prompts.TEXT_INSTRUCTION_PROMPT.format(question=text)
        return Reply.of(self._events(self._encode(prompt), "text", []))

    def answer(self, question: Question, *, aloud: bool = True) -> Reply:
        """The whole reply to a question; see `ask`."""
        return Reply.of(self.ask(question, aloud=aloud))

    def transcribe(self, wav: np.ndarray, description: str = prompts.TRANSCRIBE) -> str:
        """Transcript of a recording, float32 [samples] at 16 kHz."""
        return Reply.of(self.transcribing(wav, description)).text

    def speak(self, text: str, description: str = prompts.SPEAK) -> Reply:
        """Reads a text aloud: a reply with units and waveform."""
        return Reply.of(self.speaking(text, description))

    def reset(self) -> None:
        """Forgets all turns."""
        self.history.clear()

    def _encode(self, text: str) -> list[int]:
        return self.model.encode(self.prefix, text)

    def _with_history(self, prompt: str) -> list[int]:
        """Token ids of the prompt after as many of the last turns as `history_tokens` allow."""
        alone = self._encode(prompt)
        if not self.history_tokens:
            return alone
        room = self.model.engine.context - self.max_new_tokens - len(alone)
        room = len(alone) + min(self.history_tokens, room)
        longest = alone
        for first in reversed(range(len(self.history))):
            text = "".join(self.history[first:]) + prompt
            # More characters than tokens can hold are not worth the time.
            if len(text) > room * self.model.masks.longest_token:
                break
            ids = self._encode(text)
            if len(ids) > room:
                break
            longest = ids
        return longest

    def continue_prompt(self, prompt: list[int]) -> str:
        """Text and units, in any order, after the token ids of a whole prompt."""
        answer = self._submit(prompt, ANY)
        return self.model.tokenizer.decode([token.id for token in answer])

    def _events(self, prompt: list[int], form: str, tokens: list[int]) -> Generator[Event]:
        """Events of the answer to a prompt; its token ids are added to `tokens`."""
        model = self.model
        answer = self._submit(prompt, form)
        events = text_and_unit_events(
            _collected(answer, tokens),
            form,
            model.masks,
            model.tokenizer,
            was_cut=lambda: answer.finish_reason == "length",
        )
        if not self.has_sound:
            return (event for burst in events for event in burst)
        return with_sound(events, model.vocoder, self.speaker, 1 / self.speed)

    def _submit(self, prompt: list[int], form: str) -> Answer:
        """The answer to a prompt, while it is written."""
        answer = self.model.engine.submit(self._request(prompt, form))
        self.answers = [answer]
        return answer

    def _request(self, prompt: list[int], form: str) -> Request:
        return Request(
            prompt,
            self.max_new_tokens,
            stop_ids=self.model.tokenizer.stop_ids,
            sampling=self.sampling,
            seed=None if self.seed is None else (self.seed + len(self.history)) % 2**32,
            state=self.model.masks.start(form),
        )


def _collected(answer: Answer, tokens: list[int]) -> Iterator[list]:
    """The bursts of an answer, whose token ids are added to `tokens`."""
    for burst in answer.bursts():
        tokens += [token.id for token in burst]
        yield burst
