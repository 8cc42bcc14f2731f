"""Any text-to-speech command, as a template of one command line: {speaker}, {text} and {wav}.

The template is split into arguments before the text goes in, and no shell ever sees the text.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

from speechgpt_jax.errors import UserError

FLITE = "flite -voice {speaker} -t {text} -o {wav}"


class NotSpoken(UserError):
    """The command could be run, but made no sound of this text."""


def speech_command(template: str, speaker: str, text: str, wav: str) -> list[str]:
    """ "flite -voice {speaker} -t {text} -o {wav}" -> its arguments, the text being exactly one."""
    values = {"{speaker}": speaker, "{text}": text, "{wav}": wav}
    missing = [name for name in ("{text}", "{wav}") if name not in template]
    if missing:
        raise UserError(f"--tts={template!r} lacks {missing}; give a command such as {FLITE!r}.")
    pattern = re.compile("|".join(map(re.escape, values)))
    return [pattern.sub(lambda m: values[m[0]], part) for part in shlex.split(template)]


def speak(template: str, speaker: str, text: str, wav: Path) -> None:
    """Writes the wav, whole or not at all.

    Raises:
      NotSpoken: the command failed.
      UserError: there is no such command.
    """
    unfinished = wav.with_suffix(".part.wav")
    command = speech_command(template, speaker, text, str(unfinished))
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{command[0]} can't be run ({error}); check --tts.") from error
    if done.returncode or not unfinished.exists():
        reason = done.stderr.strip() or f"exit code {done.returncode}, no file written"
        raise NotSpoken(f"{template} failed when {speaker} said {text!r} ({reason}); check --tts.")
    os.replace(unfinished, wav)
