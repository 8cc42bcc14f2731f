"""Mistakes that a user can fix: they are shown as one line, without a traceback."""

import contextlib
import sys
from collections.abc import Iterator


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
