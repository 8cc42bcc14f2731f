"""The forms of dialogues, the templates that mark their turns, and the parser of responses.

A form is a format string: `CROSS_MODAL.format(description=..., source=..., target=...)`; units are
inserted as unit text. Dots and spaces differ between the forms exactly as they do in the published
SpeechInstruct data (Zhang et al. 2023), on which the released checkpoints were trained.

Each `*_PROMPT` is the part of a dialogue before the response: decoding starts from it. It ends
without the space that follows in the dialogue, since that space belongs to the response's first
word.

Dialogues are written, stored and checked with SpeechGPT's marks. A model reads them in its
template: SpeechGPT's, or that of its base, which already knows where turns begin and end.
"""

import dataclasses
import json
import re
from typing import NamedTuple

from speechgpt_jax.errors import UserError
from speechgpt_jax.unit_text import END, START, units_in

HUMAN, SPEECHGPT, END_OF_HUMAN, END_OF_ANSWER = "[Human]", "[SpeechGPT]", "<eoh>", "<eoa>"

# Markers before the answer in text and the answer in units in chain of modality.
TEXT_ANSWER, UNIT_ANSWER = "[ta]", "[ua]"
# The released models may write this before a transcript.
TRANSCRIPT = "[tq]"

# The added tokens after the units; <eoa>, [tq], [ta] and [ua] are ordinary text.
MARKERS = (START, END, HUMAN, SPEECHGPT, END_OF_HUMAN, "<eos>")

# Our own system prompt. SpeechInstruct records bring another; released checkpoints need the one
# that they were trained with.
DEFAULT_PREFIX = "This is SpeechGPT.\n"

# The task descriptions used at inference; training uses many (data/descriptions.py).
TRANSCRIBE = "Transcribe this speech"
SPEAK = "Say this text aloud"

# Cross-modal instruction: {source} is text and {target} unit text, or the other way round.
CROSS_MODAL_PROMPT = "[Human]: {description}. This is input: {source}<eoh> [SpeechGPT]:"
CROSS_MODAL = CROSS_MODAL_PROMPT + " {target}<eoa> "

# A text instruction, in the form of the cross-modal data it is mixed with.
TEXT_INSTRUCTION_PROMPT = "[Human]: {question}<eoh> [SpeechGPT]:"
TEXT_INSTRUCTION = TEXT_INSTRUCTION_PROMPT + " {answer}<eoa> "

# Chain of modality. A spoken question is answered in speech and a written one in text, unless the
# question asks for the other.
SPEECH_TO_SPEECH_PROMPT = "[Human]: {question_units}<eoh>. [SpeechGPT]:"
SPEECH_TO_SPEECH = SPEECH_TO_SPEECH_PROMPT + " {question}; [ta] {answer}; [ua] {answer_units}<eoa>."

SPEECH_TO_TEXT_PROMPT = "[Human]: {question_units} Answer in writing.<eoh>. [SpeechGPT]:"
SPEECH_TO_TEXT = SPEECH_TO_TEXT_PROMPT + " {question}; [ta] {answer}<eoa>."

TEXT_TO_SPEECH_PROMPT = "[Human]: {question} Answer aloud.<eoh>. [SpeechGPT]:"
TEXT_TO_SPEECH = TEXT_TO_SPEECH_PROMPT + " [ta] {answer}; [ua] {answer_units}<eoa>."

TEXT_TO_TEXT_PROMPT = "[Human]: {question}<eoh>. [SpeechGPT]:"
TEXT_TO_TEXT = TEXT_TO_TEXT_PROMPT + " [ta] {answer}<eoa>."


# Words between the description of a task and its input; a recording without them is a question.
INPUT_FOLLOWS = re.compile(r"this is (?:the )?input:", re.IGNORECASE)


def added_tokens(num_units: int) -> list[str]:
    """Tokens that a vocabulary gets: `<0>`, `<1>`, ..., then MARKERS."""
    return [*(f"<{unit}>" for unit in range(num_units)), *MARKERS]


def split_request(text: str) -> tuple[str, str] | None:
    """`"Say it aloud. This is input: hi"` -> `("Say it aloud", "hi")`; None for a question."""
    match = INPUT_FOLLOWS.search(text)
    if not match:
        return None
    task = text[: match.start()].rstrip()
    task = task[:-1] if task.endswith((".", ",", ":", ";")) else task
    return task.strip(), text[match.end() :].strip()


@dataclasses.dataclass(frozen=True)
class Response:
    """The parts of a model's response; parts that it did not write are empty.

    Attributes:
      question: its transcript of a spoken question.
      text: the answer in text, or the transcript when the task was ASR.
      units: the answer in units, or the speech when the task was TTS.
      source: what the user gave to be read aloud, where the dialogue before the response is known.
    """

    question: str
    text: str
    units: list[int]
    source: str = ""


class Turn(NamedTuple):
    """Text before and after a turn."""

    start: str
    end: str


# White space beside SpeechGPT's marks, in the syntax that re and TensorFlow share.
_SPACE = r"[ \t\r\n]*"


@dataclasses.dataclass(frozen=True)
class Template:
    """Marks of the turns of a dialogue in the text that a model reads.

    Attributes:
      name: its name in gin files and in the files of a tokenizer.
      system, human, answer: what stands around the system prompt, a user's turn and an answer.
      special_tokens: tokens that the tokenizer must have. The last one ends a turn, and with it
        the model's answer; without any, the tokenizer's own eos does.
    """

    name: str
    system: Turn
    human: Turn
    answer: Turn
    special_tokens: tuple[str, ...] = ()

    @property
    def human_mark(self) -> str:
        """Start of a user's turn, without the colon or the line's end that follows."""
        return _mark(self.human.start)

    @property
    def answer_mark(self) -> str:
        """Start of an answer, without the colon or the line's end that follows."""
        return _mark(self.answer.start)

    @property
    def colon(self) -> str:
        """Rest of the start of an answer after its mark, such as ":", without the final space."""
        return self.answer.start.removeprefix(self.answer_mark).rstrip(" ")

    @property
    def rewrites(self) -> list[tuple[str, str]]:
        """Patterns in a dialogue with SpeechGPT's marks, and what replaces them, in this order.

        A dialogue ends without the mark that ends its last answer: eos follows.
        """
        if not self.special_tokens:
            return []
        end = rf"{_SPACE}<eoa>\.?{_SPACE}"
        prompt = rf"{_SPACE}<eoh>\.?{_SPACE}\[SpeechGPT\]:?{_SPACE}"
        return [
            (end + "$", ""),
            (end, self.answer.end),
            (prompt, self.human.end + self.answer.start),
            (rf"\[Human\]:?{_SPACE}", self.human.start),
            (" +$", ""),
        ]

    def render(self, prefix: str, dialogue: str) -> str:
        """A system prompt and a dialogue, or its beginning, as the model reads it.

        In ChatML, `"Be kind.\\n"`, `"[Human]: hi<eoh>. [SpeechGPT]:"` is
        `"<|im_start|>system\\nBe kind.<|im_end|>\\n<|im_start|>user\\nhi<|im_end|>\\n"
        "<|im_start|>assistant\\n"`.
        """
        if not self.rewrites:
            return prefix + dialogue
        for pattern, replacement in self.rewrites:
            dialogue = re.sub(_from_first_space(pattern), replacement, dialogue)
        prefix = prefix.strip()
        return (self.system.start + prefix + self.system.end if prefix else "") + dialogue

    def answer_in(self, response: str) -> str:
        """A response up to the mark that ends an answer."""
        for mark in (END_OF_ANSWER, *self.special_tokens[-1:]):
            response = response.partition(mark)[0]
        return response

    def parse(self, text: str) -> Response:
        """`"what is it?; [ta] a cat; [ua] <sosp><7><eosp><eoa>."` -> its three parts.

        Args:
          text: decoded text, with or without the dialogue before the response, and with or without
            spaces around added tokens. It may be incomplete: the units after an unclosed `<sosp>`
            are kept, and a missing marker leaves its part empty.
        """
        dialogue, _, response = text.rpartition(self.answer_mark)
        body = self.answer_in(response.strip().removeprefix(":"))
        words, _, speech = body.partition(START)
        units = units_in(speech.partition(END)[0])
        question, chained, answer = words.partition(UNIT_ANSWER)[0].partition(TEXT_ANSWER)
        if not chained:
            question, answer = "", question
        _, source = split_request(dialogue.rpartition(_mark(self.human.end))[0]) or ("", "")
        return Response(_clean(question.removeprefix(TRANSCRIPT)), _clean(answer), units, source)

    def jinja(self, with_bos: bool) -> str:
        """The template as Hugging Face's `chat_template`, with bos in front or without."""
        turns = {"system": self.system, "user": self.human, "assistant": self.answer}
        cases = "".join(
            f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}"
            f"{{{{ {json.dumps(start)} + message['content'] | trim + {json.dumps(end)} }}}}"
            for i, (role, (start, end)) in enumerate(turns.items())
        )
        return (
            ("{{ bos_token }}" if with_bos else "")
            + f"{{% for message in messages %}}{cases}{{% endif %}}{{% endfor %}}"
            + "{% if add_generation_prompt %}"
            + f"{{{{ {json.dumps(self.answer_mark + self.colon)} }}}}{{% endif %}}"
        )


def _from_first_space(pattern: str) -> str:
    """A pattern that begins with spaces, so that Python tries each run of spaces only once.

    TensorFlow does so anyway, and knows neither what precedes nor possessive quantifiers.
    """
    if pattern.startswith(_SPACE):
        rest = pattern.removeprefix(_SPACE)
        return rf"(?<![ \t\r\n]){_SPACE}+{rest}|{rest}"
    return rf"(?<! ){pattern}" if pattern.startswith(" ") else pattern


def _mark(text: str) -> str:
    return text.rstrip(" .:\n")


def _clean(text: str) -> str:
    return text.strip().removesuffix(";").strip()


def _headed(name: str, start: str, after: str, end: str, tokens: tuple[str, ...]) -> Template:
    """A template whose turns begin with the name of a role between two marks."""
    roles = ("system", "user", "assistant")
    system, human, answer = (Turn(start + role + after, end) for role in roles)
    return Template(name, system, human, answer, tokens)


# The dots are those of chain of modality.
SPEECHGPT_TEMPLATE = Template(
    "speechgpt",
    Turn("", "\n"),
    Turn(f"{HUMAN}: ", f"{END_OF_HUMAN}. "),
    Turn(f"{SPEECHGPT}: ", f"{END_OF_ANSWER}. "),
)
# Qwen, SmolLM2 and others.
CHATML_TEMPLATE = _headed(
    "chatml", "<|im_start|>", "\n", "<|im_end|>\n", ("<|im_start|>", "<|im_end|>")
)
# LLaMA 3; 3.1 and 3.2 add dates to the system prompt, which belong to the prefix here.
LLAMA3_TEMPLATE = _headed(
    "llama3",
    "<|start_header_id|>",
    "<|end_header_id|>\n\n",
    "<|eot_id|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
TEMPLATES = {t.name: t for t in (SPEECHGPT_TEMPLATE, CHATML_TEMPLATE, LLAMA3_TEMPLATE)}


def template(name: str) -> Template:
    """The template of a name; raises a UserError if there is none."""
    if name not in TEMPLATES:
        raise UserError(f"template {name!r} is unknown; choose from {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]
