"""Recordings of a human, on which nothing is trained: prompts of Debian's package of Asterisk."""

import gzip
import random
import re
from pathlib import Path

from etils import epath

from speechgpt_jax import files
from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.demo_world import words as demo_words
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.demo_world.clips import Clip, make_clip
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.audio import SAMPLE_RATE

HUMAN = "human"
HUMAN_PROMPTS = 140


def prompt_text(transcript: str) -> str:
    """ "Press 7 to delete this message." -> "press seven to delete this message."

    Returns "" for transcripts with symbols, abbreviations, single letters or numbers above nine.
    """
    text = transcript.strip(" .\n")
    if re.search(r"[^A-Za-z0-9 ,.!?']|\d\d|\d\.\d|\.\.|[A-Z]{2}|\b[B-HJ-Zb-z]\b", text):
        return ""
    text = re.sub(r"\d", lambda digit: demo_words.ONES[int(digit[0])], text.lower())
    text = re.sub(r"\s+", " ", text.replace("!", ".")).rstrip(".")
    return text if text.endswith("?") else text + "."


def human_prompts(folder: files.Path, count: int) -> list[tuple[epath.Path, str]]:
    """(G.722 file, text) of at most `count` sentences of 1.5 to 8 seconds under `folder`.

    Raises:
      UserError: `folder` doesn't hold the packages.
    """
    below = files.files_below(folder)
    transcripts = [path for path in below if path.name == "core-sounds-en.txt.gz"]
    if not transcripts:
        raise UserError(
            f"--human_prompts={folder} holds no core-sounds-en.txt.gz; unpack Debian's "
            "asterisk-core-sounds-en and asterisk-core-sounds-en-g722 there with `dpkg-deb -x`."
        )
    recordings = {path.stem: path for path in below if path.suffix == ".g722"}
    found = {}
    for line in gzip.decompress(transcripts[0].read_bytes()).decode().split("\n"):
        name, _, transcript = line.partition(": ")
        path, text = recordings.get(name), prompt_text(transcript)
        if not path or len(text.split()) < 4 or "represenatives" in text:  # sic
            continue
        if 1.5 <= path.stat().length / G722_BYTES_PER_SECOND <= 8:
            found.setdefault(text.strip(".?"), (path, text))
    chosen = random.Random(demo_world.SEED).sample(sorted(found), min(count, len(found)))
    return [found[text] for text in sorted(chosen)]


def copy_human_prompts(prompts: list[tuple[epath.Path, str]], work_dir: Path) -> list[Clip]:
    """Writes the wavs of a human's prompts and returns their clips."""
    clips = []
    for i, (path, text) in enumerate(prompts):
        wav = decode_g722(path)
        clip = make_clip(
            "prompt", i, text, HUMAN, "human", "prompts", seconds=len(wav) / SAMPLE_RATE
        )
        audio.save_audio(work_dir / clip.path, wav)
        clips.append(clip)
    return clips
