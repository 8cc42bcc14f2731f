"""What the launchers share that start a stopped run again: the command, and how it says so."""

from collections.abc import Sequence

# Of a run that was told to stop, saved, and is to be started again: EX_TEMPFAIL of sysexits.h.
STOPPED_EXIT_CODE = 75
# From SIGTERM to SIGKILL: time to finish the step under way and to write a checkpoint.
GRACE_SECONDS = 300


def train_command(python: str, arguments: Sequence[str]) -> list[str]:
    return [
        python,
        "-m",
        "speechgpt_jax.train",
        f"--stopped_exit_code={STOPPED_EXIT_CODE}",
        *arguments,
    ]
