"""Other programs that ours run, such as gcloud, kubectl and sbatch."""

import subprocess
from collections.abc import Sequence
from typing import Any

from speechgpt_jax.errors import UserError


def run(words: Sequence[str], input: str | None = None, remedy: str | None = None) -> int:
    """Runs another program, such as gcloud or sbatch, and returns its exit code.

    Args:
      words: the program and its arguments.
      input: text for its standard input.
      remedy: what can be done without the program, for the message.

    Raises:
      UserError: it is not installed.
    """
    return _completed(words, remedy, input=input).returncode


def output(words: Sequence[str]) -> str | None:
    """Standard output of another program; None if it fails, having printed the reason on stderr.

    Raises:
      UserError: it is not installed.
    """
    done = _completed(words, None, stdout=subprocess.PIPE)
    return None if done.returncode else done.stdout


def _completed(
    words: Sequence[str], remedy: str | None, **options: Any
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, text=True, check=False, **options)
    except FileNotFoundError as error:
        advice = f"; {remedy}" if remedy else ""
        raise UserError(f"{words[0]} is not installed, or not on PATH{advice}.") from error
