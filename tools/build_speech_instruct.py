"""SpeechInstruct of your own: what the three stages are trained on, by Apache Beam.

    python -m tools.build_speech_instruct modality_adaptation --units=UNITS --output=stage1
    python -m tools.build_speech_instruct cross_modal_instruction --units=UNITS --output=stage2
    python -m tools.build_speech_instruct chain_of_modality --dialogues=FILE --output=stage3 \\
        --tts="flite -voice {speaker} -t {text} -o {wav}" --question_voices=slt,rms,kal16

UNITS is the output of tools.extract_units. The steps write, in as many shards,

    modality_adaptation        units-*.txt: a line of unit text a recording
    cross_modal_instruction    asr-*.jsonl, tts-*.jsonl: units -> text and text -> units, each under
                               one of 100 descriptions; of the rows that have a `text`
    chain_of_modality          speech_to_speech-*.jsonl, speech_to_text-*.jsonl,
                               text_to_speech-*.jsonl, text_to_text-*.jsonl: the four forms

JSONL has a `prefix` and a `plain_text` a line, as SpeechInstruct has. FILE is JSONL or TSV with a
`question` and an `answer` a row. They are spoken by a command (--tts, where {speaker} is one of the
voices) and heard by --hubert, or written as units by a model of ours (--text_to_unit=RUN).

Rows that won't do are in rejects-*.jsonl with the `reason`. The same command goes on after a kill;
output does not depend on the number of workers; all other flags are Beam's (--runner): see
tools.extract_units, whose shards are made in the same way.
"""

import argparse
import dataclasses
import functools
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.corpus import shards, text_to_speech
from speechgpt_jax.data import descriptions
from speechgpt_jax.decoding.conversation import build_llama
from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tools.extract_units import Extractor, Sound, absolute, in_advance, load

# Text with these in it would be read as something else than text.
MARKERS = re.compile("|".join([*map(re.escape, prompts.ROLE_TOKENS), r"<\d+>"]))
CHAIN_FORMS = {
    "speech_to_speech": prompts.SPEECH_TO_SPEECH,
    "speech_to_text": prompts.SPEECH_TO_TEXT,
    "text_to_speech": prompts.TEXT_TO_SPEECH,
    "text_to_text": prompts.TEXT_TO_TEXT,
}
# Texts spoken at a time by a model of ours; answers' lengths differ, and the longest sets the pace.
GENERATE_BATCH = 16

Utterance = tuple[str, str]  # text, voice
Spoken = Sequence[int] | str  # reduced units, or why there are none


def main(arguments: Sequence[str] | None = None) -> None:
    args, beam_arguments = parser().parse_known_args(arguments)
    options = shards.pipeline_options(beam_arguments)
    job, work = STEPS[args.step](args)
    output = absolute(args.output)
    shards.print_summary(shards.run(job, work, output, options), output)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--units", help="folder that tools.extract_units wrote")
    parser.add_argument("--dialogues", help="JSONL or TSV with `question` and `answer`")
    parser.add_argument("--prefix", default=prompts.DEFAULT_PREFIX, help="the system prompt")
    parser.add_argument("--tts", help="command with {speaker}, {text} and {wav}")
    parser.add_argument("--text_to_unit", help="a run of ours that speaks, instead of --tts")
    parser.add_argument("--hubert", default=str(SHIPPED), help="what hears the spoken dialogues")
    parser.add_argument("--question_voices", default="slt", help="several by commas; for {speaker}")
    parser.add_argument("--answer_voice", default="slt", help="for {speaker}")
    parser.add_argument("--max_answer_words", type=int, default=35, help="longer ones are rejected")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="of --text_to_unit")
    parser.add_argument("--shard_size", type=int, default=250, help="dialogues a shard")
    return parser


# ---- the steps ---------------------------------------------------------------------------------


def modality_adaptation(args) -> tuple[shards.Job, list[shards.Shard]]:
    job = shards.Job("modality_adaptation", ("units",), lambda: write_units, count_units, "txt")
    return job, unit_shards(args)


def cross_modal_instruction(args) -> tuple[shards.Job, list[shards.Shard]]:
    write = functools.partial(write_pairs, prefix=args.prefix)
    job = shards.Job("cross_modal_instruction", ("asr", "tts"), lambda: write, count_units)
    return job, unit_shards(args)


def chain_of_modality(args) -> tuple[shards.Job, list[shards.Shard]]:
    if not args.dialogues or bool(args.tts) == bool(args.text_to_unit):
        raise UserError("chain_of_modality needs --dialogues, and --tts or --text_to_unit.")
    if args.tts:
        text_to_speech.speech_command(args.tts, "", "", "")  # A bad one is better known now.
    rows = shards.read_table(absolute(args.dialogues), ("question", "answer"))
    work = shards.cut(rows, absolute(args.output), args.shard_size, settings(args))

    def make_writer() -> DialogueWriter:
        if args.tts:
            speak = CommandVoice(args.tts, Extractor.from_pretrained(absolute(args.hubert), 32))
        else:
            speak = ModelVoice.from_run(absolute(args.text_to_unit), args.max_new_tokens)
        voices = args.question_voices.split(","), args.answer_voice
        return DialogueWriter(speak, *voices, args.prefix, args.max_answer_words)

    return shards.Job("chain_of_modality", tuple(CHAIN_FORMS), make_writer, count_units), work


STEPS = {
    step.__name__: step
    for step in (modality_adaptation, cross_modal_instruction, chain_of_modality)
}


def unit_shards(args) -> list[shards.Shard]:
    """One shard of output for each that tools.extract_units wrote."""
    if not args.units:
        raise UserError(f"{args.step} needs --units, the output of tools.extract_units.")
    files = shards.find_files(absolute(args.units), "units-*-of-*.jsonl")
    if not files or len(files) != int(files[0][-11:-6]):
        raise UserError(
            f"--units={args.units} has {len(files)} finished shards, not all; "
            "let tools.extract_units finish."
        )
    shards.keep_plan(absolute(args.output), settings(args) | {"files": files})
    return [shards.Shard(file, i, len(files)) for i, file in enumerate(files)]


def settings(args) -> dict:
    """What output depends on."""
    return {
        name: value for name, value in vars(args).items() if name not in ("output", "shard_size")
    }


# ---- recordings --------------------------------------------------------------------------------


def write_units(rows: list[dict]) -> dict[str, list[str]]:
    """Rows with `units` -> lines of unit text."""
    return {"units": [units_to_text(row["units"]) for row in rows], shards.REJECTS: []}


def write_pairs(rows: list[dict], prefix: str) -> dict[str, list[str]]:
    """Rows with `units` and `text` -> what asks for the text and what asks for the units."""
    lines = {"asr": [], "tts": [], shards.REJECTS: []}
    for row in rows:
        reason = reason_against(row.get("text"))
        if reason:
            lines[shards.REJECTS].append(rejected(row, reason))
            continue
        text, units = one_line(row["text"]), units_to_text(row["units"])
        # The same description for the same recording in every run.
        rng = random.Random(row["path"])
        for kind, options, source, target in (
            ("asr", descriptions.ASR, units, text),
            ("tts", descriptions.TTS, text, units),
        ):
            values = {"description": rng.choice(options), "source": source, "target": target}
            lines[kind].append(record(prefix, prompts.CROSS_MODAL, values))
    return lines


def reason_against(text: object) -> str:
    """Why a text can't be learned from; "" if it can."""
    if not isinstance(text, str) or not text.strip():
        return "there is no text"
    marker = MARKERS.search(text)
    return f"the text has {marker[0]} in it, which is a token" if marker else ""


def one_line(text: str) -> str:
    return " ".join(text.split())


def record(prefix: str, template: str, values: dict[str, str]) -> str:
    return json.dumps({"prefix": prefix, "plain_text": template.format(**values)})


def rejected(row: dict, reason: str) -> str:
    # Thousands of units say nothing of why.
    row = {name: value for name, value in row.items() if name not in ("units", "durations")}
    return json.dumps(row | {"reason": reason})


def count_units(line: str) -> dict[str, int]:
    return {"units": len(re.findall(r"<\d+>", line))}


# ---- dialogues ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DialogueWriter:
    """Rows with `question` and `answer` -> the four forms of the chain of modality."""

    speak: Callable[[list[Utterance]], list[Spoken]]
    question_voices: Sequence[str]
    answer_voice: str
    prefix: str
    max_answer_words: int

    def __call__(self, rows: list[dict]) -> dict[str, list[str]]:
        lines = {kind: [] for kind in (*CHAIN_FORMS, shards.REJECTS)}
        reasons = [self._reason_against(row) for row in rows]
        usable = [row for row, reason in zip(rows, reasons) if not reason]
        spoken = iter(self.speak([said for row in usable for said in self._utterances(row)]))
        for row, reason in zip(rows, reasons):
            units = [] if reason else [next(spoken), next(spoken)]
            reason = reason or next((said for said in units if isinstance(said, str)), "")
            if reason:
                lines[shards.REJECTS].append(rejected(row, reason))
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
class CommandVoice:
    """A text-to-speech command, and what hears it."""

    template: str
    extractor: Extractor

    def __call__(self, utterances: list[Utterance]) -> list[Spoken]:
        sound = in_advance(self._sound, utterances, threads=os.cpu_count() or 1)
        heard = self.extractor.encode(sound)
        return [said if isinstance(said, str) else said[0].tolist() for said in heard]

    def _sound(self, utterance: Utterance) -> Sound:
        text, voice = utterance
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "spoken.wav"
            try:
                text_to_speech.speak(self.template, voice, text, wav)
            except text_to_speech.NotSpoken as error:
                return str(error)
            return load(str(wav))


@dataclasses.dataclass(frozen=True)
class ModelVoice:
    """A text-to-unit model of ours. It has one voice, whatever is asked for."""

    model: Llama
    tokenizer: Tokenizer
    max_new_tokens: int

    @classmethod
    def from_run(cls, run: str, max_new_tokens: int) -> "ModelVoice":
        tokenizer = Tokenizer.from_pretrained(f"{run}/tokenizer")
        return cls(checkpoints.load_model(run, build_llama), tokenizer, max_new_tokens)

    def __call__(self, utterances: list[Utterance]) -> list[Spoken]:
        # Texts of like length together; full batches, so that few shapes are compiled.
        order = sorted(range(len(utterances)), key=lambda i: len(utterances[i][0]))
        spoken = {}
        for start in range(0, len(order), GENERATE_BATCH):
            batch = order[start : start + GENERATE_BATCH]
            padded = batch + batch[-1:] * (GENERATE_BATCH - len(batch))
            spoken |= zip(padded, self._speak([utterances[i][0] for i in padded]))
        return [spoken[i] for i in range(len(utterances))]

    def _speak(self, texts: list[str]) -> list[Spoken]:
        tokens, lengths = generate(
            self.model,
            [self._prompt(text) for text in texts],
            max_new_tokens=self.max_new_tokens,
            stop_ids=[self.tokenizer.eos_id],
            sampling=GREEDY,
        )
        return [self._units(row, length) for row, length in zip(tokens, lengths)]

    def _prompt(self, text: str) -> list[int]:
        prompt = prompts.CROSS_MODAL_PROMPT.format(description=prompts.SPEAK, source=text)
        return [
            self.tokenizer.bos_id,
            *self.tokenizer.encode(prompts.DEFAULT_PREFIX + prompt),
        ]

    def _units(self, tokens: np.ndarray, length: int) -> Spoken:
        if length == len(tokens):
            return f"the model spoke for {length} tokens without an end; see --max_new_tokens"
        units = prompts.parse_response(self.tokenizer.decode(tokens[:length])).units
        return units or "the model spoke no units"


if __name__ == "__main__":
    with one_line_errors():
        main()
