"""Asks a trained model a spoken or written question, or lets it transcribe or read aloud.

    python -m speechgpt_jax.infer --audio=question.wav --output=answer.wav
    python -m speechgpt_jax.infer --text="what month comes after may?"
    python -m speechgpt_jax.infer --task=transcribe --audio=speech.wav
    python -m speechgpt_jax.infer --run=runs/demo/stage2 --task=speak --text="good morning"

Prints the text of the reply and writes its speech to --output.

    python -m speechgpt_jax.infer --run=runs/7b/stage3 --prompts=questions.jsonl \\
        --answers=answers --mesh=8 --dtype=bfloat16 --multihost
    python -m speechgpt_jax.infer --run=runs/7b/stage3 --prompts_task=demo_asr --answers=answers

With --prompts each row has a `text` or an `audio` (a path, relative to the table), and --answers
gets numbered shards of these rows, in their order, with `transcript`, `text` and `units` of the
reply as `answer`. A killed command, given again, resumes with the missing shards. With several
processes each answers its own shards, on its own devices. tools.synthesize makes sound of units.
With --prompts_task the prompts are those of a SeqIO task; each row has the `task`, its `prompt` and
the `target`, the answer in the data.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from speechgpt_jax import arguments, compilation_cache, task_modules
from speechgpt_jax.arguments import (
    define,
    existing_file,
    is_text,
    nonempty,
    output_folder,
    positive_int,
)
from speechgpt_jax.decoding import flags as talk
from speechgpt_jax.errors import UserError, naming, one_line_errors
from speechgpt_jax.files import is_remote
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.manifests import read_rows, resolve
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_output, save_audio
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.speech.sound_devices import open_player
from speechgpt_jax.training import process_flags

if TYPE_CHECKING:
    from speechgpt_jax.decoding.conversation import Conversation, Reply

MESH = talk.define_mesh()
flags.adopt_module_key_flags(talk)
flags.adopt_module_key_flags(compilation_cache)
flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(task_modules)
TASK = flags.DEFINE_enum(
    "task",
    "answer",
    ["answer", "transcribe", "speak", "instruct"],
    "answer a question, transcribe a recording, speak a text, or instruct: answer a written"
    " instruction in text only, for a base model without speech training.",
)
AUDIO = define("audio", existing_file, None, "A recording as input.")
TEXT = define("text", nonempty, None, "A text as input, instead of --audio.")
OUTPUT = define(
    "output", nonempty, "answer.wav", "File for the spoken answer; its suffix sets the format."
)
PLAY = flags.DEFINE_bool("play", False, "Also play the spoken answer, where this machine can.")
WRITTEN = flags.DEFINE_bool("written", False, "Answer in text only; for --task=answer.")
PROMPTS = define(
    "prompts",
    existing_file,
    None,
    "Table with a `text` or an `audio` in each row; all are answered.",
)
PROMPTS_TASK = define(
    "prompts_task", nonempty, None, "SeqIO task or mixture whose prompts are answered."
)
SPLIT = define("split", nonempty, "test", "Split of --prompts_task.")
NUM_EXAMPLES = define(
    "num_examples", positive_int, None, "Examples per task of --prompts_task; by default all."
)
ANSWERS = define("answers", output_folder, None, "Folder for the answers to all prompts.")
ROWS_PER_SHARD = define("rows_per_shard", positive_int, 256, "Rows of a shard of --answers.")
AT_ONCE = define("at_once", positive_int, 32, "Prompts that are answered at once.")


def main() -> None:
    hush_libraries()
    check_flags()
    if PROMPTS.value:
        questions = [check_question(row.fields, row.place) for row in read_rows(PROMPTS.value)]
        if not questions:
            raise UserError(f"{PROMPTS.value} has no rows; expected one per question.")
        answer_all(questions, answer_question)
    elif PROMPTS_TASK.value:
        examples = read_examples()
        # Answered from token ids: encoding the text again could change them.
        answer_all(
            [{"example": number, **row} for number, (row, _) in enumerate(examples)],
            lambda conversation, row: answer_prompt(conversation, examples[row["example"]][1]),
        )
    else:
        answer_one({"audio": AUDIO.value} if AUDIO.value else {"text": TEXT.value})


def check_flags() -> None:
    """Raises a UserError if a flag is missing or has no effect beside the others."""
    if [AUDIO.value, TEXT.value, PROMPTS.value, PROMPTS_TASK.value].count(None) != 3:
        raise UserError("Give one of --audio, --text, --prompts and --prompts_task.")
    if PROMPTS.value or PROMPTS_TASK.value:
        if not ANSWERS.value:
            raise UserError("All prompts are answered into a folder; give --answers.")
        refuse([OUTPUT, PLAY], "is for one question; tools.synthesize makes sound of --answers.")
    else:
        table_flags = [ANSWERS, ROWS_PER_SHARD, AT_ONCE, *process_flags.ALL]
        refuse(table_flags, "goes with --prompts or --prompts_task.")
    if PROMPTS_TASK.value:
        refuse([TASK, WRITTEN, talk.PREFIX], "is part of the prompts of --prompts_task.")
    else:
        refuse([SPLIT, NUM_EXAMPLES], "goes with --prompts_task.")
    if TASK.value != "answer":
        refuse([WRITTEN], f"goes with --task=answer, not with --task={TASK.value}.")
    if not is_spoken():
        refuse([OUTPUT, PLAY], "is for a spoken answer, and this one is a text.")


def refuse(given: Sequence[flags.FlagHolder], reason: str) -> None:
    """Raises a UserError, `--FLAG REASON`, if one of the flags is given."""
    for flag in given:
        if flag.present:
            raise UserError(f"--{flag.name} {reason}")


def is_spoken() -> bool:
    """Whether the answer has sound."""
    return TASK.value in ("answer", "speak") and not WRITTEN.value


def answer_one(question: dict) -> None:
    """Prints the reply to one question and writes its sound."""
    check_question(question, "The question")
    if is_spoken():
        check_output(OUTPUT.value)
    source = question["text"] if "text" in question else load_recording(question["audio"])
    # Loads JAX, which takes seconds; wrong flags are reported before.
    conversation = talk.start_conversation(talk.load_speech_model(num_slots=1, devices=MESH.value))
    reply = ask(conversation, source)
    if TASK.value in ("transcribe", "instruct"):
        print(reply.text)
    else:
        show(reply)


def audio_path(row: dict) -> str:
    """Path of the recording of a question; that of a row of --prompts starts at the table."""
    return resolve(row["audio"], PROMPTS.value) if PROMPTS.value else row["audio"]


def check_question(row: dict, place: str) -> dict:
    """Returns `row`; raises a UserError unless it has what the task needs."""
    if "answer" in row:
        raise UserError(f"{place}: the reply would replace the field `answer`; rename it.")
    if ("audio" in row) == ("text" in row):
        raise UserError(f"{place}: expected either `text` or `audio`, got {', '.join(row)}.")
    question = row.get("text", row.get("audio"))
    if not isinstance(question, str) or not is_text(question) or not question.strip():
        raise UserError(f"{place}: expected a text or the path of a recording, got {question!r}.")
    if "audio" in row and not is_remote(path := audio_path(row)) and not os.path.isfile(path):
        raise UserError(f"{place}: there is no recording {path}.")
    form, end = ("`", "`") if PROMPTS.value else ("--", "")  # A field of the row, or a flag.
    if TASK.value == "transcribe" and "audio" not in row:
        raise UserError(f"{place}: --task=transcribe needs a recording; give {form}audio{end}.")
    if TASK.value in ("speak", "instruct") and "text" not in row:
        raise UserError(f"{place}: --task={TASK.value} needs a text; give {form}text{end}.")
    return row


def ask(conversation: Conversation, source: Any) -> Reply:
    """The reply to one question, by the task."""
    from speechgpt_jax.decoding.conversation import Reply

    if TASK.value == "transcribe":
        return Reply.of(conversation.transcribing(source))
    if TASK.value == "speak":
        return conversation.speak(source)
    if TASK.value == "instruct":
        return conversation.instruct(source)
    return conversation.answer(source, aloud=not WRITTEN.value)


def read_examples() -> list[tuple[dict, list[int]]]:
    """Fields to write and token ids of the prompt of each example of --prompts_task."""
    # TensorFlow takes seconds; it is imported for SeqIO's tasks alone.
    task_modules.register()
    from speechgpt_jax.evaluation import examples
    from speechgpt_jax.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(f"{talk.RUN.value}/tokenizer")
    found = list(examples.read(tokenizer, PROMPTS_TASK.value, SPLIT.value, NUM_EXAMPLES.value))
    if not found:
        raise UserError(
            f"{PROMPTS_TASK.value} has no examples in split {SPLIT.value}; name another --split."
        )
    return [
        (
            {
                "task": example.task,
                "prompt": tokenizer.decode(example.prompt),
                "target": tokenizer.decode(example.answer),
            },
            example.prompt,
        )
        for example in found
    ]


def name_of(row: dict) -> str:
    """Name of a row of --prompts or --prompts_task in messages."""
    if PROMPTS_TASK.value:
        return f"example {row['example']}"
    question = row["text"] if "text" in row else row["audio"]
    return question if len(question) <= 60 else f"{question[:60]}..."


def answer_question(conversation: Conversation, row: dict) -> dict:
    """Parts of the answer to a row of --prompts."""
    source = row["text"] if "text" in row else load_recording(audio_path(row))
    reply = ask(conversation, source)
    return {"transcript": reply.transcript, "text": reply.text, "units": reply.units}


def answer_prompt(conversation: Conversation, prompt: list[int]) -> dict:
    """Parts of the answer to a whole prompt."""
    parse = conversation.model.tokenizer.template.parse
    response = parse(conversation.continue_prompt(prompt))
    return {"transcript": response.question, "text": response.text, "units": response.units}


def answer_all(rows: Sequence[dict], answer: Callable[[Conversation, Any], dict]) -> None:
    """Adds the parts of an answer to all rows, in shards in the folder --answers."""
    # Each process prints its own mistakes: at an exception it would leave the others waiting.
    with process_flags.connected(independent=True), one_line_errors():
        import jax

        from speechgpt_jax.decoding.shards import answer_shards

        model = talk.load_speech_model(num_slots=AT_ONCE.value, devices=MESH.value)
        conversation = talk.start_conversation(model, has_sound=False)

        def answered(row: dict) -> dict:
            with naming(name_of(row)):
                parts = answer(dataclasses.replace(conversation, history=[]), row)
            return {"answer": {name: part for name, part in parts.items() if part}}

        settings = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(talk)}
        settings |= {
            flag.name: flag.value for flag in (TASK, WRITTEN, PROMPTS, PROMPTS_TASK, SPLIT)
        }
        answer_shards(
            rows,
            ANSWERS.value,
            answered,
            rows_per_shard=ROWS_PER_SHARD.value,
            at_once=AT_ONCE.value,
            settings=settings,
            share=(jax.process_index(), jax.process_count()),
        )


def show(reply: Reply) -> None:
    """Prints the parts of a reply and writes its sound to --output.

    Raises:
      UserError: it is empty.
    """
    if not (reply.transcript or reply.text or reply.units):
        raise UserError(
            "the reply is empty; a larger --max_new_tokens may help, or a model that was trained"
            f" for --task={TASK.value}."
        )
    if reply.transcript:
        print(f"question: {reply.transcript}")
    if reply.text:
        print(f"answer:   {reply.text}")
    if reply.units:
        save_audio(OUTPUT.value, reply.wav)
        seconds = len(reply.wav) / SAMPLE_RATE
        print(f"spoken:   {len(reply.units)} units, {seconds:.1f} s, in {OUTPUT.value}")
        if PLAY.value:
            play(reply.wav)


def play(wav: np.ndarray) -> None:
    """Plays float32 [samples] at 16 kHz, or prints that there is no loudspeaker."""
    player = open_player()
    if player is None:
        print("No loudspeaker was found here; play the file elsewhere.")
        return
    player.write(wav)
    player.close()


if __name__ == "__main__":
    arguments.run_with_flags(main)
