"""Other programs that ours run, such as gcloud, kubectl and sbatch."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from speechgpt_jax.errors import UserError

# Exit code of a program that was ended for its time limit: that of coreutils' `timeout`.
TIMEOUT_EXIT_CODE = 124


def run(
    words: Sequence[str],
    input: str | None = None,
    remedy: str | None = None,
    timeout: float | None = None,
) -> int:
    """Runs another program, such as gcloud or sbatch, and returns its exit code.

    Args:
      words: the program and its arguments.
      input: text for its standard input.
      remedy: what can be done without the program, for the message.
      timeout: seconds after which it is ended, with exit code 124.

    Raises:
      UserError: it is not installed.
    """
    return _completed(words, remedy, input, timeout, stdout=None).returncode


def output(words: Sequence[str], timeout: float | None = None) -> str | None:
    """Standard output of another program; None if it fails, having printed the reason on stderr.

    Raises:
      UserError: it is not installed.
    """
    done = _completed(words, None, None, timeout, stdout=subprocess.PIPE)
    return None if done.returncode else done.stdout


def _completed(
    words: Sequence[str],
    remedy: str | None,
    input: str | None,
    timeout: float | None,
    stdout: int | None,
) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            words,
            text=True,
            stdin=None if input is None else subprocess.PIPE,
            stdout=stdout,
            # gcloud starts ssh, which would outlive it and hold its output open.
            start_new_session=timeout is not None,
        )
    except FileNotFoundError as error:
        advice = f"; {remedy}" if remedy else ""
        raise UserError(f"{words[0]} is not installed, or not on PATH{advice}.") from error
    with process:
        try:
            printed, _ = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process, timeout)
            print(f"{words[0]} did not end within {timeout:g} seconds.", file=sys.stderr)
            return subprocess.CompletedProcess(words, TIMEOUT_EXIT_CODE)
        except BaseException:
            _kill(process, timeout)
            raise
    return subprocess.CompletedProcess(words, process.returncode, printed)


def _kill(process: subprocess.Popen[str], timeout: float | None) -> None:
    if timeout is None:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
