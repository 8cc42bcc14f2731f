"""Text-to-speech commands: templates of a command line with {speaker}, {text} and {wav}.

The template is split into arguments before the text is put in, and no shell runs the command.
"""

import errno
import re
import shlex
import shutil
import subprocess

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import Path, whole_file
from speechgpt_jax.local_copies import written_locally

FLITE = "flite -voice {speaker} -t {text} -o {wav}"


class SynthesisError(UserError):
    """The command was run, but failed for this text."""


def speech_command(template: str, speaker: str, text: str, wav: str) -> list[str]:
    """ "flite -voice {speaker} -t {text} -o {wav}" -> its arguments, the text being exactly one."""
    values = {"{speaker}": speaker, "{text}": text, "{wav}": wav}
    missing = [name for name in ("{text}", "{wav}") if name not in template]
    if missing:
        raise UserError(
            f"the text-to-speech command {template!r} lacks {missing}; give one such as {FLITE!r}."
        )
    try:
        parts = shlex.split(template)
    except ValueError as error:
        raise UserError(
            f"the text-to-speech command {template!r} is not a command line: {error}."
        ) from error
    pattern = re.compile("|".join(map(re.escape, values)))
    return [pattern.sub(lambda m: values[m[0]], part) for part in parts]


def check_command(template: str) -> None:
    """Raises a UserError if the template lacks {text} or {wav}, or its program isn't installed."""
    program = speech_command(template, "", "", "")[0]
    if not shutil.which(program):
        raise UserError(
            f"the text-to-speech command {template!r}: {program!r} is not installed, or not on"
            " PATH."
        )


def synthesize(template: str, speaker: str, text: str, wav: Path) -> None:
    """Writes the wav, whole or not at all.

    Raises:
      SynthesisError: the command failed.
      UserError: there is no such command, or the wav can't be written.
    """
    with whole_file(wav) as unfinished, written_locally(unfinished) as local:
        command = speech_command(template, speaker, text, str(local))
        reason = _failure(command)
        if not reason and not (local.exists() and local.stat().st_size):
            reason = "no sound written"
        if reason:
            raise SynthesisError(
                f"{template} failed for {speaker}, {text[:99]!r} ({reason}); check the command."
            )


def _failure(command: list[str]) -> str:
    """Runs the command and returns why it failed, "" if it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except ValueError as error:  # NUL or a lone surrogate in the text.
        return str(error)
    except OSError as error:
        if error.errno == errno.E2BIG:
            return "the text is longer than an argument can be"
        raise UserError(f"{command[0]} can't be run ({error}); check the command.") from error
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
