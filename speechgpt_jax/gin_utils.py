"""Gin: configuration files -> calls of plain functions; the only library module that knows gin.

    def main():
        gin_utils.call(lm.train, output_dir="runs/stage1")

    gin_utils.run(main)      # --gin_file=... --gin.train.steps=100 --gin_search_paths=...

Files start with `from __gin__ import dynamic_registration` and import what they bind, so nothing in
the library is decorated. Whatever a user got wrong ends as one line on the terminal.
"""

import ast
import contextlib
import copy
import inspect
import logging
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

import gin
from speechgpt_jax.errors import UserError, one_line_errors

PROJECT = Path(__file__).parent.parent

# What gin raises for a mistake in a file or a binding.
CONFIG_ERRORS = (
    AttributeError,
    ImportError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


class ConfigError(UserError):
    """A mistake in a gin file or binding."""


# Files are found from the project's root, wherever the command is run.
gin.add_config_file_search_path(str(PROJECT))


def define_flags():
    """--gin_file and --gin_search_paths."""
    flags.DEFINE_multi_string("gin_file", [], "A gin file; of several, the later ones win.")
    flags.DEFINE_list("gin_search_paths", [], "Folders where gin files and includes are found.")


def run(main: Callable[[], None], *, complete: bool = True):
    """Reads flags and gin, then calls `main()`; what the user got wrong is one line.

    A main that only asks for some `arguments` is not `complete`: what it doesn't use may be unset.

    Besides those of `define_flags` and of the caller: --gin.NAME=VALUE, as in T5X.
    """
    define_flags()
    with one_line_errors():
        argv, bindings = split_arguments(sys.argv)

        def parse_and_call(_):
            hush_libraries()
            parse(flags.FLAGS.gin_file, bindings, flags.FLAGS.gin_search_paths, complete)
            main()

        app.run(parse_and_call, argv)


def hush_libraries():
    """Leaves the terminal to our own lines; what libraries log as errors still shows."""
    if "verbosity" not in flags.FLAGS or not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.ERROR)
        # That silences Python's root logger, and what we drop or skip is never dropped silently.
        logging.getLogger("speechgpt_jax").setLevel(logging.WARNING)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """["train", "--gin.train.steps=9", "--v=1"] -> ["train", "--v=1"], ["train.steps = 9"].

    A value that is no Python literal, %MACRO or @reference is a string, so that
    --gin.train.start_from=runs/stage1 needs no quotes.
    """
    rest = [argument for argument in argv if not argument.startswith("--gin.")]
    bindings = []
    for argument in argv:
        if argument.startswith("--gin."):
            name, equals, value = argument.removeprefix("--gin.").partition("=")
            if not (name and equals):
                raise ConfigError(f"{argument}: write --gin.NAME=VALUE.")
            bindings.append(f"{name} = {_quoted(value)}")
    return rest, bindings


def _quoted(value: str) -> str:
    if value.startswith(("%", "@")):
        return value
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return repr(value)
    return value


def parse(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    complete: bool = True,
):
    """Reads files, then bindings on top; ConfigError names a missing file or a misspelt name."""
    gin.clear_config()
    for path in search_paths:
        gin.add_config_file_search_path(path)
    with _quiet():
        for file in files:
            with _config_errors():
                gin.parse_config_file(file)
        for binding in bindings:
            with _config_errors(f"--gin.{binding}: "):
                _require_known_macro(binding)
                gin.parse_config(binding)
        if complete:
            with _config_errors():
                gin.finalize()  # Every %gin.REQUIRED must be set.


def call(function: Callable, **kwargs):
    """`function` with `kwargs`, and everything else that gin binds."""
    with contextlib.suppress(ValueError):  # If no gin file imports it, nothing is bound.
        function = gin.get_configurable(function)
    try:
        return function(**kwargs)
    except UserError as error:  # Gin has added the call to its message.
        raise UserError(_message(error)) from error
    except CONFIG_ERRORS as error:
        if not _raised_by_gin(error):
            raise
        raise ConfigError(_message(error)) from error


def arguments(function: Callable, names: Sequence[str]) -> dict:
    """What `call` would give to some parameters of `function`; the others aren't even evaluated."""
    bound = {}
    with contextlib.suppress(ValueError):  # If no gin file imports it, nothing is bound.
        bound = gin.get_bindings(function, resolve_references=False)
    parameters = inspect.signature(function).parameters
    values = {name: bound.get(name, parameters[name].default) for name in names}
    # Gin evaluates its references when they are copied.
    with _config_errors():
        values = copy.deepcopy(values)
    for name, value in values.items():
        if value is inspect.Parameter.empty or value is gin.REQUIRED:
            raise ConfigError(f"{function.__name__}.{name} is not set.")
    return values


def operative_config() -> str:
    """All values in use, defaults included, as a gin file that gives the same again."""
    return gin.operative_config_str()


def _raised_by_gin(error) -> bool:
    origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return origin.is_relative_to(Path(gin.__file__).parent)


def _message(error) -> str:
    """What gin says over many lines, in one: the problem, the file and the line."""
    text = str(error.args[0] if isinstance(error, tokenize.TokenError) else error)
    text = text.partition("\n  In call to configurable")[0].partition("\n  In bindings string")[0]
    # Here gin quotes the whole configuration.
    text = re.sub(r"(?s)No bindings specified for '(\w+)/.*", r"%\1 is not set.", text)
    return " ".join(text.split())


def _require_known_macro(binding):
    """Gin takes any new macro, so that a misspelt --gin.MACRO=... would change nothing."""
    name = binding.partition("=")[0].strip()
    if "." not in name:
        try:
            gin.query_parameter(f"{name}/macro.value")
        except ValueError:
            raise ConfigError(f"no gin file defines the macro {name}.") from None


@contextlib.contextmanager
def _config_errors(where: str = ""):
    try:
        yield
    except CONFIG_ERRORS as error:
        raise ConfigError(where + _message(error)) from error


@contextlib.contextmanager
def _quiet():
    """Gin logs an error for every folder in which a file is not."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
