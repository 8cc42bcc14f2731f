"""Talks with a trained model in a terminal: type, or give recordings; it answers aloud.

    python -m speechgpt_jax.chat
    python -m speechgpt_jax.chat --run=runs/demo/stage3 --output_dir=replies --log=chat.jsonl

/help lists the commands. A reply is shown and played while it is generated. Lines can be piped:

    echo "where does a fish live?" | python -m speechgpt_jax.chat --run=runs/demo/stage3 --written
"""

from __future__ import annotations

import functools
import io
import sys
import threading
from collections.abc import Iterator

from absl import flags

from speechgpt_jax import arguments, compilation_cache
from speechgpt_jax.arguments import define, local_output_file, output_folder
from speechgpt_jax.decoding import flags as talk
from speechgpt_jax.gin_utils import hush_libraries

HISTORY_TOKENS = talk.define_history_tokens()
MESH = talk.define_mesh()
flags.adopt_module_key_flags(talk)
flags.adopt_module_key_flags(compilation_cache)
OUTPUT_DIR = define("output_dir", output_folder, None, "Save sound here instead of playing it.")
LOG = define(
    "log", local_output_file, None, "JSONL file on this machine to which every turn is added."
)
WRITTEN = flags.DEFINE_bool("written", False, "Answer in text only.")
# Longer recordings compile their programs when they come.
QUESTION_SECONDS = 10


def main() -> None:
    hush_libraries()
    print("Loading JAX ...", file=sys.stderr, flush=True)
    lines = begin_typing() if sys.stdin.isatty() else None

    from speechgpt_jax.decoding.chat import Chat

    print("Loading the model ...", file=sys.stderr, flush=True)
    model = talk.load_speech_model(num_slots=1, devices=MESH.value)
    conversation = talk.start_conversation(model, history_tokens=HISTORY_TOKENS.value)
    chat = Chat(
        conversation,
        aloud=not WRITTEN.value,
        output_dir=OUTPUT_DIR.value,
        log=LOG.value,
        show=functools.partial(print, end="", flush=True),
    )
    if lines is None:
        chat.run(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace"))
        return
    # While the first line is typed.
    threading.Thread(target=model.warm_up, args=(QUESTION_SECONDS,), daemon=True).start()
    print("Ready; /help shows the commands.", file=sys.stderr)
    chat.run(lines)


def begin_typing() -> Iterator[str]:
    """Lines typed at a prompt, which completes the vocoder's voices too."""
    from speechgpt_jax.decoding.line_editor import start_session, typed_lines
    from speechgpt_jax.speech.vocoder.vocoder import load_config

    return typed_lines(start_session(load_config(talk.VOCODER_FOLDER.value).speakers))


if __name__ == "__main__":
    arguments.run_with_flags(main)
