"""The dialogue templates, and the parser of responses.

A template is a format string: `CROSS_MODAL.format(description=..., source=..., target=...)`; units
are inserted as unit text. Dots and spaces differ between the templates exactly as they do in the
published SpeechInstruct data (Zhang et al. 2023), on which the released checkpoints were trained.

Each `*_PROMPT` is the part of a dialogue before the response: decoding starts from it. It ends
without the space that follows in the dialogue, since that space belongs to the response's first
word.
"""

import dataclasses
import re

HUMAN, SPEECHGPT, END_OF_HUMAN, END_OF_ANSWER = "[Human]", "[SpeechGPT]", "<eoh>", "<eoa>"

# What precedes the answer in text and the answer in units in chain of modality.
TEXT_ANSWER, UNIT_ANSWER = "[ta]", "[ua]"

# The added tokens after the units; <eoa>, [ta] and [ua] are ordinary text.
ROLE_TOKENS = ("<sosp>", "<eosp>", HUMAN, SPEECHGPT, END_OF_HUMAN, "<eos>")

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

# The prompt of the released system; {question} is text or unit text.
RELEASED_PROMPT = "[Human]: {question} <eoh>. [SpeechGPT]: "


# What a request says before the input of a task; a recording without it is a question.
INPUT_FOLLOWS = re.compile(r"[.,:;]?\s*this is (?:the )?input:\s*", re.IGNORECASE)


def split_request(text: str) -> tuple[str, str] | None:
    """`"Say it aloud. This is input: hi"` -> `("Say it aloud", "hi")`; None for a question."""
    match = INPUT_FOLLOWS.search(text)
    return (text[: match.start()].strip(), text[match.end() :].strip()) if match else None


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


def parse_response(text: str) -> Response:
    """`"what is it?; [ta] a cat; [ua] <sosp><7><eosp><eoa>."` -> its three parts.

    Args:
      text: decoded text, with or without the dialogue before the response, and with or without
        spaces around added tokens. It may be incomplete: the units after an unclosed `<sosp>` are
        kept, and a missing marker leaves its part empty.
    """
    dialogue, _, response = text.rpartition(SPEECHGPT)
    body = response.strip().removeprefix(":")
    body = body.partition(END_OF_ANSWER)[0]
    words, _, speech = body.partition("<sosp>")
    units = [int(unit) for unit in re.findall(r"<([0-9]+)>", speech.partition("<eosp>")[0])]
    question, chained, answer = words.partition(UNIT_ANSWER)[0].partition(TEXT_ANSWER)
    if not chained:
        question, answer = "", question
    _, source = split_request(dialogue.rpartition(END_OF_HUMAN)[0]) or ("", "")
    return Response(_clean(question.removeprefix("[tq]")), _clean(answer), units, source)


def _clean(text: str) -> str:
    return text.strip().removesuffix(";").strip()
