"""Asks a trained model.

python -m speechgpt_jax.infer --run=runs/demo/stage3 --audio=question.wav --output=answer.wav
python -m speechgpt_jax.infer --run=runs/demo/stage3 --text="what is two plus three?"
python -m speechgpt_jax.infer --run=runs/demo/stage2 --task=transcribe --audio=speech.wav
python -m speechgpt_jax.infer --run=runs/demo/stage2 --task=speak --text="good morning"
"""

from typing import Any

from absl import app, flags

from speechgpt_jax.decoding.conversation import HUBERT, VOCODER, Conversation, Reply
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.speech.audio import check_output, load_audio, save_audio

RUN = flags.DEFINE_string("run", None, "Folder of a training run.", required=True)
TASK = flags.DEFINE_enum("task", "answer", ["answer", "transcribe", "speak"], "What to do.")
AUDIO = flags.DEFINE_string("audio", None, "The recording to listen to.")
TEXT = flags.DEFINE_string("text", None, "The text to read, instead of --audio.")
OUTPUT = flags.DEFINE_string(
    "output", "answer.wav", "File for the spoken answer; its suffix names the format."
)
WRITTEN = flags.DEFINE_bool("written", False, "Answer in writing only.")
HUBERT_FOLDER = flags.DEFINE_string("hubert", str(HUBERT), "HuBERT and centroids.")
VOCODER_FOLDER = flags.DEFINE_string("vocoder", str(VOCODER), "The unit vocoder.")
SPEAKER = flags.DEFINE_string("speaker", "slt", "Which of the vocoder's voices speaks.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of sampling; 0 takes the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", 50, "Sample among so many of the likeliest tokens.")
TOP_P = flags.DEFINE_float("top_p", 0.8, "Sample among the likeliest tokens of this total mass.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 384, "Longest answer.")


def main(_) -> None:
    hush_libraries()
    if (AUDIO.value is None) == (TEXT.value is None):
        raise UserError("Give one of --audio and --text.")
    if TASK.value == "transcribe" and AUDIO.value is None:
        raise UserError("--task=transcribe listens: give --audio.")
    if TASK.value == "speak" and TEXT.value is None:
        raise UserError("--task=speak reads: give --text.")
    if TASK.value == "speak" or (TASK.value == "answer" and not WRITTEN.value):
        check_output(OUTPUT.value)
    source: Any = TEXT.value if AUDIO.value is None else load_audio(AUDIO.value)
    conversation = Conversation.from_run(
        RUN.value,
        hubert=HUBERT_FOLDER.value,
        vocoder=VOCODER_FOLDER.value,
        speaker=SPEAKER.value,
        sampling=Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value),
        max_new_tokens=MAX_NEW_TOKENS.value,
    )
    if TASK.value == "transcribe":
        print(conversation.transcribe(source))
    elif TASK.value == "speak":
        show(conversation.speak(source))
    else:
        show(conversation.answer(source, aloud=not WRITTEN.value))


def show(reply: Reply) -> None:
    """Prints what there is of the reply, and writes its sound."""
    if reply.transcript:
        print(f"heard:  {reply.transcript}")
    if reply.text:
        print(f"answer: {reply.text}")
    if reply.units:
        save_audio(OUTPUT.value, reply.wav)
        seconds = len(reply.wav) / 16_000
        print(f"spoken: {len(reply.units)} units, {seconds:.1f} s, in {OUTPUT.value}")


if __name__ == "__main__":
    with one_line_errors():
        app.run(main)
