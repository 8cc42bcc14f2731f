"""Errors of checkpoints: damaged files, full disks, lost processes."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import jax
from etils import epath

from speechgpt_jax.checkpoints.folders import latest_step_in
from speechgpt_jax.errors import UserError

# Errors of JAX and Orbax for which no file is to blame: another process of the run is gone, or the
# memory of a device is full.
RUNTIME_ERRORS = (jax.errors.JaxRuntimeError, TimeoutError)

# Libraries whose exceptions tell of the network.
NETWORK = ("google.api_core", "google.auth", "google.cloud", "requests", "urllib3")
# Codes in TensorStore's messages when a bucket doesn't answer, or refuses us.
REFUSED = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)


def _show_unless_abandoned(show: Callable, unraisable) -> None:
    """A sys.unraisablehook without the reads that Orbax abandons at a damaged file.

    TensorStore ends them later, when Orbax's event loop is closed; each printed a traceback.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        show(unraisable)


sys.unraisablehook = functools.partial(_show_unless_abandoned, sys.unraisablehook)


class Damaged(UserError):
    """A checkpoint's files are missing, truncated or changed since they were written."""

    def __init__(self, folder: epath.Path, problem: str):
        super().__init__(f"checkpoint {folder} is damaged: {problem}")


class Unreadable(UserError):
    """A checkpoint may be whole, but can't be read now: no permission, no connection, ..."""

    def __init__(self, folder: epath.Path, problem: str):
        super().__init__(
            f"checkpoint {folder} can't be read: {problem}. It may be whole: check who may read it"
            " and the network, then repeat the command."
        )


class NotSaved(UserError):
    """A checkpoint can't be written, most often because the disk is full."""


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[None]:
    """Turns exceptions of Orbax, TensorStore and JSON into Damaged or Unreadable."""
    try:
        yield
    except (MemoryError, *RUNTIME_ERRORS):
        raise
    except Exception as error:
        kind = Unreadable if _is_refused(error) else Damaged
        raise kind(folder, f"{type(error).__name__}: {_first_line(error)}") from error


def _is_refused(error: Exception) -> bool:
    """Whether the file system or the network is to blame, not the files."""
    is_network = type(error).__module__.startswith(NETWORK) and type(error).__name__ != "NotFound"
    return (
        is_network
        or isinstance(error, (PermissionError, ConnectionError))
        or any(code in str(error) for code in REFUSED)
    )


def _first_line(error: Exception) -> str:
    """The error's message without the paths and codes that TensorStore puts around the cause."""
    line = (str(error).splitlines() or [type(error).__name__])[0].partition(" [")[0]
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-120:]}"


@contextlib.contextmanager
def writing(folder: epath.Path) -> Iterator[None]:
    """Turns exceptions of Orbax, such as those of a full disk, into NotSaved."""
    try:
        yield
    except (NotSaved, *RUNTIME_ERRORS):
        raise
    except Exception as error:
        step = latest_step_in(folder)
        kept = "there was none before" if step is None else f"step {step} is untouched"
        raise NotSaved(
            f"a checkpoint can't be written to {folder}: {_first_line(error)} ({kept}). Free"
            " some space if the disk is full, or check who may write there; the same command then"
            " resumes from the last checkpoint."
        ) from error
