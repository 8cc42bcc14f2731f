"""Asks a trained model a spoken or written question, or lets it transcribe or read aloud.

    python -m speechgpt_jax.infer --run=runs/demo/stage3 --audio=question.wav --output=answer.wav
    python -m speechgpt_jax.infer --run=runs/demo/stage3 --text="what is two plus three?"
    python -m speechgpt_jax.infer --run=runs/demo/stage2 --task=transcribe --audio=speech.wav
    python -m speechgpt_jax.infer --run=runs/demo/stage2 --task=speak --text="good morning"

Prints the text of the reply and writes its speech to --output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from speechgpt_jax import arguments
from speechgpt_jax.arguments import define, existing_file, nonempty
from speechgpt_jax.decoding import flags as talk
from speechgpt_jax.errors import UserError
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_output, load_audio, save_audio

if TYPE_CHECKING:
    from speechgpt_jax.decoding.conversation import Reply

flags.adopt_module_key_flags(talk)
TASK = flags.DEFINE_enum(
    "task",
    "answer",
    ["answer", "transcribe", "speak"],
    "answer a question, transcribe a recording or read a text aloud.",
)
AUDIO = define("audio", existing_file, None, "A recording as input.")
TEXT = define("text", nonempty, None, "A text as input, instead of --audio.")
OUTPUT = define(
    "output", nonempty, "answer.wav", "File for the spoken answer; its suffix sets the format."
)
WRITTEN = flags.DEFINE_bool("written", False, "Answer in text only; for --task=answer.")


def main() -> None:
    hush_libraries()
    if (AUDIO.value is None) == (TEXT.value is None):
        raise UserError("Give either --audio or --text.")
    if TASK.value == "transcribe" and AUDIO.value is None:
        raise UserError("--task=transcribe needs a recording: give --audio.")
    if TASK.value == "speak" and TEXT.value is None:
        raise UserError("--task=speak needs a text: give --text.")
    if WRITTEN.value and TASK.value != "answer":
        raise UserError(f"--written goes with --task=answer, not with --task={TASK.value}.")
    if TASK.value != "transcribe" and not WRITTEN.value:
        check_output(OUTPUT.value)

    source: Any = TEXT.value if AUDIO.value is None else load_audio(AUDIO.value)
    # Loads JAX, which takes seconds; wrong flags are reported before.
    conversation = talk.start_conversation(talk.load_speech_model(num_slots=1))
    if TASK.value == "transcribe":
        print(conversation.transcribe(source))
    elif TASK.value == "speak":
        show(conversation.speak(source))
    else:
        show(conversation.answer(source, aloud=not WRITTEN.value))


def show(reply: Reply) -> None:
    """Prints the parts of a reply and writes its sound to --output."""
    if reply.transcript:
        print(f"question: {reply.transcript}")
    if reply.text:
        print(f"answer:   {reply.text}")
    if reply.units:
        save_audio(OUTPUT.value, reply.wav)
        seconds = len(reply.wav) / SAMPLE_RATE
        print(f"spoken:   {len(reply.units)} units, {seconds:.1f} s, in {OUTPUT.value}")


if __name__ == "__main__":
    arguments.run_with_flags(main)
