"""Command-line arguments: values are checked when they are parsed; every mistake is one line.

    parser = Parser(__doc__)                                      # tools: argparse
    parser.add_argument("--num_clusters", type=positive_int, default=100)
    ...
    arguments.run(main)                                           # main(sys.argv[1:])

    STEPS = define("steps", at_least(0), 400, "Optimizer steps.")     # mains: absl flags
    ...
    arguments.run_with_flags(main)                                # main()

A type is a function that takes the text of an argument and returns its value or raises
IllegalValue; the same types serve argparse and absl. No type accepts NaN or infinity.
"""

import argparse
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from etils import epath

from speechgpt_jax import files
from speechgpt_jax.errors import (
    UserError,
    install_command,
    one_line_errors,
    show_missing_library,
)
from speechgpt_jax.limits import is_within, limits_text

Type = Callable[[str], Any]

# Every program imports this module first, before libraries that an extra installs.
sys.excepthook = show_missing_library


class IllegalValue(UserError, argparse.ArgumentTypeError):
    """An argument has an illegal value; argparse and absl put its name before the message."""


# ---- types ---------------------------------------------------------------------------------------


def _number(kind: Callable[[str], float], noun: str, **limits: float) -> Type:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise _illegal(text, f"{noun}, {limits_text(**limits)}") from None
        if not is_within(value, **limits):
            is_infinite = isinstance(value, float) and not math.isfinite(value) and limits
            kind_of = noun.replace("a ", "a finite ") if is_infinite else noun
            raise _illegal(text, f"{kind_of}, {limits_text(value, **limits)}")
        return value

    return parse


def at_least(minimum: int, **limits: float) -> Type:
    """Type of whole numbers of at least `minimum` and within `limits`, such as at_most=8."""
    return _number(int, "a whole number", at_least=minimum, **limits)


positive_int = at_least(1)
# JAX takes no larger ones.
seed = at_least(0, below=2**32)


def finite_float(**limits: float) -> Type:
    """Type of finite numbers within `limits`: above, at_least, below and at_most."""
    return _number(float, "a number", **limits)


positive_float = finite_float(above=0)


def name(text: str) -> str:
    """Type of names: letters, digits, `.`, `_` and `-`, with a letter or digit first."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise _illegal(text, "a name of letters, digits, '.', '_' and '-'")
    return text


def nonempty(text: str) -> str:
    """Type of texts that are not blank."""
    if not utf8(text).strip():
        raise _illegal(text, "a text that is not blank")
    return text


def utf8(text: str) -> str:
    """Type of all texts, blank ones too."""
    if not is_text(text):
        raise _illegal(text, "a text in UTF-8")
    return text


def key_in(variable: str) -> str | None:
    """The API key in an environment variable; None: it is unset or empty.

    Raises:
      UserError: it can't be sent in a header. The message does not show it.
    """
    key = os.environ.get(variable) or None
    if key and not re.fullmatch(r"[!-~]+", key):
        raise UserError(
            f"{variable}: expected a key of ASCII letters, digits and signs without spaces; HTTP"
            " sends no others."
        )
    return key


def host_and_port(text: str) -> str:
    """Type of network addresses, HOST:PORT."""
    found = re.fullmatch(r"\S+:(\d{1,5})", text)
    if not (found and 1 <= int(found[1]) <= 65535):
        raise _illegal(text, "HOST:PORT, such as 10.0.0.2:8476")
    return text


def is_text(text: str) -> bool:
    """Whether a string can be encoded; lone surrogates stand for bytes that are no UTF-8."""
    return text.encode(errors="replace").decode() == text


def location(text: str) -> epath.Path:
    """Type of paths, local or gs://, whether or not there is something."""
    return epath.Path(checked(nonempty(text), files.check_url))


def existing_path(text: str) -> str:
    """Type of files and folders that exist, local or gs://."""
    checked(nonempty(text), files.check_url)
    if not exists(text):
        raise _illegal(text, "a path that exists")
    return text


def exists(path: str) -> bool:
    """Whether there is a file or folder, local or gs://; IllegalValue if that can't be known."""
    try:
        return _path(path).exists()
    except ImportError as error:
        raise IllegalValue(
            f"{path} can't be read: buckets need {install_command('train')}"
        ) from error
    except files.io_errors() as error:
        raise IllegalValue(f"{path} can't be read: {error}") from error


def existing_file(text: str) -> str:
    """Type of files that exist, local or gs://."""
    path = existing_path(text)
    if _path(path).is_dir():
        raise IllegalValue(f"expected a file, got the folder {text!r}")
    return path


def existing_folder(text: str) -> str:
    """Type of folders that exist, local or gs://."""
    path = existing_path(text)
    if not _path(path).is_dir():
        raise IllegalValue(f"expected a folder, got the file {text!r}")
    return path


def existing_local_file(text: str) -> str:
    """Type of files that exist on this machine."""
    return existing_file(checked(nonempty(text), files.check_local))


def output_folder(text: str) -> str:
    """Type of folders to write into: they exist or can be made."""
    return checked(nonempty(text), files.check_writable_folder)


def new_folder(text: str) -> epath.Path:
    """`output_folder` as a path."""
    return epath.Path(output_folder(text))


def local_output_folder(text: str) -> str:
    """Type of folders to write into that are on this machine."""
    return checked(output_folder(text), files.check_local)


def local_output_file(text: str) -> str:
    """Type of files to write that are on this machine."""
    return checked(output_file(text), files.check_local)


def output_file(text: str) -> str:
    """Type of files to write: their folder exists or can be made."""
    return checked(nonempty(text), files.check_writable_file)


def checked(text: str, check: Callable[[str], Any]) -> str:
    """Returns `text`, or raises IllegalValue if `check(text)` raises a UserError; for new types."""
    try:
        check(text)
    except UserError as error:
        raise IllegalValue(str(error)) from error
    return text


def _path(text: str) -> pathlib.Path | epath.Path:
    # Where TensorFlow is broken, epath can't read local files either.
    return epath.Path(text) if files.is_remote(text) else pathlib.Path(text)


def _illegal(text: str, expected: str) -> IllegalValue:
    return IllegalValue(f"expected {expected}, got {text!r}")


# ---- argparse ------------------------------------------------------------------------------------


class _Help(argparse.RawTextHelpFormatter):
    """Keeps line breaks, and names the default of an argument whose help doesn't."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_named = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        if not action.help or is_named or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviated flags, whose errors are UserErrors.

    Args:
      description: the tool's docstring, shown with its line breaks.
      kwargs: other arguments of argparse.ArgumentParser.
    """

    def __init__(self, description: str | None = None, **kwargs):
        kwargs = {
            "formatter_class": _Help,
            "allow_abbrev": False,
            **kwargs,
        }
        super().__init__(description=description, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.rstrip('.')}. {self.prog} --help shows what can be given.")


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Exits with the code that `main(sys.argv[1:])` returns; prints a UserError as one line.

    Ctrl-C exits with code 130, as in shells.
    """
    with one_line_errors():
        try:
            sys.exit(main(sys.argv[1:]))
        except KeyboardInterrupt:
            sys.exit(130)


# ---- absl ----------------------------------------------------------------------------------------

# --help lists a flag under the module that calls `define`.
flags.disclaim_key_flags()


class _Default(str):
    """A default value that is a text; unlike given values it is not checked."""


class _AbslParser(flags.ArgumentParser):
    """Makes an absl parser of a type of this module."""

    def __init__(self, parse_text: Type):
        self.parse_text = parse_text

    def parse(self, argument: Any) -> Any:
        is_given = isinstance(argument, str) and not isinstance(argument, _Default)
        return self.parse_text(argument) if is_given else argument


def define(
    name: str, type: Type, default: Any, help: str, *, required: bool = False
) -> flags.FlagHolder:
    """Defines an absl flag whose value is checked by `type`, such as one of those above."""
    if isinstance(default, str):
        default = _Default(default)
    return flags.DEFINE(_AbslParser(type), name, default, help, required=required)


def run_with_flags(main: Callable[[], None], argv: list[str] | None = None) -> NoReturn:
    """Parses absl's flags, calls `main()` and exits; prints a UserError as one line.

    `argv` starts with the program's name; by default it is sys.argv. Ctrl-C exits with code 130, as
    in shells.
    """
    with one_line_errors():
        try:
            app.run(lambda _: main(), argv, flags_parser=_parse_flags)
        except KeyboardInterrupt:
            sys.exit(130)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        message = re.sub(
            r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.",
            r"--\1 is required.",
            str(error),
        )
        raise UserError(f"{message.rstrip('.')}. --help shows what can be given.") from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}. --help shows what can be given.")
    return rest
