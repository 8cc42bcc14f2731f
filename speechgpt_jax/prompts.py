"""The dialogue templates, and how a response is read.

A template is a format string: `CROSS_MODAL.format(description=..., source=..., target=...)`; units
stand in it as unit text. Dots and spaces differ between the templates exactly as they do in the
published SpeechInstruct data (Zhang et al. 2023), because released checkpoints saw no others.

Each `*_PROMPT` is what stands before the response: decoding starts from it. It ends without the
space that follows in the dialogue, since that space belongs to the first word of the response.
"""

import dataclasses
import re

HUMAN, SPEECHGPT, END_OF_HUMAN, END_OF_ANSWER = "[Human]", "[SpeechGPT]", "<eoh>", "<eoa>"

# What an added-token vocabulary holds after the units; <eoa>, [ta] and [ua] are ordinary text.
ROLE_TOKENS = ("<sosp>", "<eosp>", HUMAN, SPEECHGPT, END_OF_HUMAN, "<eos>")

# Our own system prompt; SpeechInstruct records bring theirs, and so must a released checkpoint.
DEFAULT_PREFIX = "This is SpeechGPT.\n"

# The descriptions that our own mains ask with; training has many (data/descriptions.py).
TRANSCRIBE = "Transcribe this speech"
SPEAK = "Say this text aloud"

# Cross-modal instruction: {source} is text and {target} unit text, or the other way round.
CROSS_MODAL_PROMPT = "[Human]: {description}. This is input: {source}<eoh> [SpeechGPT]:"
CROSS_MODAL = CROSS_MODAL_PROMPT + " {target}<eoa> "

# A text instruction, in the same dress as the cross-modal data it is mixed with.
TEXT_INSTRUCTION_PROMPT = "[Human]: {question}<eoh> [SpeechGPT]:"
TEXT_INSTRUCTION = TEXT_INSTRUCTION_PROMPT + " {answer}<eoa> "

# Chain of modality. A bare spoken question is answered aloud, a bare written one in writing;
# the two crossed forms ask for what they want.
SPEECH_TO_SPEECH_PROMPT = "[Human]: {question_units}<eoh>. [SpeechGPT]:"
SPEECH_TO_SPEECH = SPEECH_TO_SPEECH_PROMPT + " {question}; [ta] {answer}; [ua] {answer_units}<eoa>."

SPEECH_TO_TEXT_PROMPT = "[Human]: {question_units} Answer in writing.<eoh>. [SpeechGPT]:"
SPEECH_TO_TEXT = SPEECH_TO_TEXT_PROMPT + " {question}; [ta] {answer}<eoa>."

TEXT_TO_SPEECH_PROMPT = "[Human]: {question} Answer aloud.<eoh>. [SpeechGPT]:"
TEXT_TO_SPEECH = TEXT_TO_SPEECH_PROMPT + " [ta] {answer}; [ua] {answer_units}<eoa>."

TEXT_TO_TEXT_PROMPT = "[Human]: {question}<eoh>. [SpeechGPT]:"
TEXT_TO_TEXT = TEXT_TO_TEXT_PROMPT + " [ta] {answer}<eoa>."

# How the released system asks; {question} is anything above, text or unit text.
RELEASED_PROMPT = "[Human]: {question} <eoh>. [SpeechGPT]: "


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model said; a part that it did not say is empty.

    Attributes:
      question: its transcript of a spoken question.
      text: the text answer, or the transcript that ASR was asked for.
      units: the unit answer, or the speech that TTS was asked for.
    """

    question: str
    text: str
    units: list[int]


def parse_response(text: str) -> Response:
    """`"what is it?; [ta] a cat; [ua] <sosp><7><eosp><eoa>."` -> its three parts.

    Takes decoded text, with or without the dialogue before the response and with or without
    spaces around added tokens. Generated text may be broken: an unclosed `<sosp>` keeps the units
    it has, and a missing marker leaves its part empty.
    """
    body = text.rpartition(SPEECHGPT)[2].strip().removeprefix(":")
    body = body.partition(END_OF_ANSWER)[0]
    words, _, speech = body.partition("<sosp>")
    units = [int(unit) for unit in re.findall(r"<(\d+)>", speech.partition("<eosp>")[0])]
    question, chained, answer = words.partition("[ua]")[0].partition("[ta]")
    if not chained:
        question, answer = "", question
    return Response(_clean(question.removeprefix("[tq]")), _clean(answer), units)


def _clean(text: str) -> str:
    return text.strip().removesuffix(";").strip()
