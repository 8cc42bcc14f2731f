"""The training command of launchers that restart a stopped run, and its exit code."""

from collections.abc import Sequence

# Exit code of a run that has saved after SIGTERM and is to be restarted: EX_TEMPFAIL of
# sysexits.h.
STOPPED_EXIT_CODE = 75
# From SIGTERM to SIGKILL: time to finish the current step and to write a checkpoint.
GRACE_SECONDS = 300


def train_command(python: str, arguments: Sequence[str]) -> list[str]:
    """`python -m speechgpt_jax.train ARGUMENTS` with STOPPED_EXIT_CODE, as a list of words."""
    return [
        python,
        "-m",
        "speechgpt_jax.train",
        f"--stopped_exit_code={STOPPED_EXIT_CODE}",
        *arguments,
    ]
