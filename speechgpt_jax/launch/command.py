"""The training command of launchers that restart a stopped run, and its exit code."""

from collections.abc import Sequence

# Exit code of a run that saved a checkpoint after SIGTERM and must be restarted: EX_TEMPFAIL of
# sysexits.h.
STOPPED_EXIT_CODE = 75
# Time from SIGTERM to SIGKILL, to finish the current step and to write a checkpoint.
GRACE_SECONDS = 300


def train_command(python: str, arguments: Sequence[str]) -> list[str]:
    """`python -m speechgpt_jax.train --stopped_exit_code=75 ARGUMENTS` as a list of words."""
    return [
        python,
        "-m",
        "speechgpt_jax.train",
        f"--stopped_exit_code={STOPPED_EXIT_CODE}",
        *arguments,
    ]
