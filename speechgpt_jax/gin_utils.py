"""Calls plain functions with the arguments of gin files; the only library module that knows gin.

    def main():
        gin_utils.call(lm.train, output_dir="runs/stage1")

    gin_utils.run(main)      # --gin_file=... --gin.train.steps=100 --gin_search_paths=...

Files start with `from __gin__ import dynamic_registration` and import what they bind, so nothing in
the library is decorated. Every mistake of a user ends as one line on the terminal.
"""

import ast
import contextlib
import copy
import dataclasses
import difflib
import functools
import inspect
import io
import logging
import os
import re
import sys
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import gin.config
import gin.config_parser
from absl import flags
from absl import logging as absl_logging

import gin
from speechgpt_jax import arguments as command_line
from speechgpt_jax.annotations import annotations, describe, fits, may_return
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.files import is_in_bucket, read_bytes

# Exceptions that gin raises for a mistake in a file or a binding.
CONFIG_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


class ConfigError(UserError):
    """A mistake in a gin file or binding."""


# The installed package contains gin/, so gin/runs/demo_stage1.gin is found from every folder.
gin.add_config_file_search_path(str(Path(__file__).parent))
# A byte order mark at the start is skipped, as in all texts.
_ENCODING = "utf-8-sig"


def _is_on_bucket(path: str) -> bool:
    return is_in_bucket(path) and command_line.exists(path)


def _open_on_bucket(path: str) -> io.TextIOWrapper:
    data = io.BytesIO(read_bytes(command_line.existing_file(path)))
    data.name = path  # Gin's messages name it.
    return io.TextIOWrapper(data, encoding=_ENCODING)


gin.config._FILE_READERS[:] = [
    (functools.partial(open, encoding=_ENCODING), os.path.isfile),
    (_open_on_bucket, _is_on_bucket),
]


# --help lists the flags under the program that calls `run` or `define_flags`.
flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines --gin_file and --gin_search_paths."""
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "A gin file, local or on gs://; later files win over earlier ones, and --gin.NAME=VALUE,"
        " which sets one value, over all files",
    )
    flags.DEFINE_list(
        "gin_search_paths",
        [],
        "Folders, local or on gs://, in which gin files and includes are sought.",
    )


def run(main: Callable[[], None], *, complete: bool = True) -> NoReturn:
    """Reads flags and gin files, calls `main()` and exits; prints a UserError as one line.

    Flags are those of `define_flags` and of the caller, and --gin.NAME=VALUE as in T5X. With
    `complete`, every value that a gin file marks as required must be set.
    """
    define_flags()

    def parse_and_call() -> None:
        hush_libraries()
        parse(flags.FLAGS.gin_file, bindings, flags.FLAGS.gin_search_paths, complete)
        main()

    with one_line_errors():
        argv, bindings = split_arguments(sys.argv)
        command_line.run_with_flags(parse_and_call, argv)


def hush_libraries() -> None:
    """Hides what libraries log below the level ERROR, unless --verbosity is given."""
    if "verbosity" not in flags.FLAGS or not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.ERROR)
        # That also sets the level of Python's root logger, which would hide our own warnings about
        # dropped and skipped examples.
        logging.getLogger("speechgpt_jax").setLevel(logging.WARNING)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """["train", "--gin.train.steps=9", "--v=1"] -> ["train", "--v=1"], ["train.steps = 9"].

    A value that isn't a Python literal, %MACRO or @reference, or a list of them, is a string, so
    that --gin.train.start_from=runs/stage1 needs no quotes.
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


# @inputs.load(), @scope/inputs.load or %STEPS within a list.
_REFERENCE = re.compile(r"(?<![\w.%@])(?:@[\w./]+(?:\(\))?|%[\w./]+)")


def _quoted(value: str) -> str:
    """`value` as a gin literal: text gets quotes."""
    if value.startswith(("%", "@")):
        return value
    try:
        ast.literal_eval(_REFERENCE.sub("0", value))
    except (SyntaxError, ValueError):
        return repr(value)
    return value


def parse(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    complete: bool = True,
) -> None:
    """Reads files, then bindings, which win, and checks each value against its parameter's type.

    Raises:
      ConfigError: a file is missing, a name is misspelt, a value has the wrong type, or with
        `complete` a required value is not set.
    """
    gin.clear_config()
    for path in search_paths:
        gin.add_config_file_search_path(path)
    with _quiet():
        for file in files:
            if os.path.isdir(file):
                raise ConfigError(f"expected a gin file, got the folder {file!r}.")
            with _config_errors(file):
                gin.parse_config_file(file)
        for binding in bindings:
            with _config_errors(f"--gin.{binding}"):
                _require_known_macro(binding)
                gin.parse_config(binding)
        if complete:
            with _config_errors():
                gin.finalize()  # Every %gin.REQUIRED must be set.
    _check_types()
    _check_scopes()


@dataclasses.dataclass(frozen=True)
class Written:
    """The text of gin files: no module is imported, and no reference is resolved.

    Attributes:
      bindings: such as [("sharding.MeshConfig.slices", 2), ("RATE", "%PEAK")], with those of
        included files, in their order; later ones win.
      missing: files that are not on this machine.
    """

    bindings: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)


def read(
    files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> Written:
    """Reads local files and bindings like `parse`, without JAX and what else the files import.

    Raises:
      ConfigError: a file is no gin file in UTF-8, or includes itself.
    """
    written = Written()
    folders = [*gin.config._LOCATION_PREFIXES, *search_paths]
    for file in files:
        with _config_errors(file):
            _read_file(file, folders, written)
    for binding in bindings:
        with _config_errors(f"--gin.{binding}"):
            _read_statements(binding, folders, written)
    return written


def _read_file(file: str, folders: Sequence[str], written: Written) -> None:
    paths = [os.path.join(folder, file) for folder in folders]
    if path := next(filter(os.path.isfile, paths), None):
        with open(path, encoding=_ENCODING) as opened:
            _read_statements(opened, folders, written)
    else:
        written.missing.append(file)


def _read_statements(source: str | IO[str], folders: Sequence[str], written: Written) -> None:
    for statement in gin.config_parser.ConfigParser(source, _AsWritten()):
        if isinstance(statement, gin.config_parser.IncludeStatement):
            _read_file(statement.filename, folders, written)
        elif isinstance(statement, gin.config_parser.BindingStatement):
            scope = f"{statement.scope}/" if statement.scope else ""
            argument = f".{statement.arg_name}" if statement.arg_name else ""
            written.bindings.append((scope + statement.selector + argument, statement.value))


class _AsWritten(gin.config_parser.ParserDelegate):
    """Leaves references and macros as their text."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> str:
        return f"@{scoped_name}{'()' if evaluate else ''}"

    def macro(self, scoped_name: str) -> str:
        return f"%{scoped_name}"


def call(function: Callable, **kwargs) -> Any:
    """Calls `function` with `kwargs` and, for its other parameters, with what gin binds to them."""
    _require_arguments(function, kwargs)
    with contextlib.suppress(ValueError):  # No gin file imports it: nothing is bound.
        function = gin.get_configurable(function)
    try:
        return function(**kwargs)
    except UserError as error:  # Gin has appended the call to the message.
        raise UserError(_message(error)) from error


def arguments(function: Callable, names: Sequence[str]) -> dict[str, Any]:
    """{name: value that `call` would pass}; references of other parameters are not evaluated."""
    others = inspect.signature(function).parameters.keys() - set(names)
    _require_arguments(function, others)
    bound = _bindings(function)
    parameters = inspect.signature(function).parameters
    values = {name: bound.get(name, parameters[name].default) for name in names}
    try:
        # Gin evaluates a reference when it is copied.
        return copy.deepcopy(values)
    except UserError as error:
        raise UserError(_message(error)) from error


def operative_config() -> str:
    """All values in use, defaults included, as the text of a gin file that sets them."""
    return gin.operative_config_str()


# ---- checks --------------------------------------------------------------------------------------


def _check_scopes() -> None:
    """Raises a ConfigError if a binding is for a scope in which no reference calls anything."""
    references = gin.config.iterate_references(gin.config._CONFIG)
    used = {scope for reference in references for scope in reference.scopes}
    for scope, selector in gin.config._CONFIG:
        # Gin binds a macro, NAME = ..., in a scope of that name.
        unused = set(scope.split("/")) - used if scope and selector != "gin.macro" else ()
        if unused:
            raise ConfigError(
                f"{scope}/{selector.removeprefix('speechgpt_jax.')} is bound, but no reference such"
                f" as @{scope}/NAME() uses the scope {min(unused)}: leave the scope out."
            )


def _check_types() -> None:
    """Raises a ConfigError if a value does not fit its parameter's annotation."""
    for (scope, selector), bound in gin.config._CONFIG.items():
        configurable = gin.config.ConfigurableReference(selector, False).configurable
        expected = annotations(configurable.wrapped)
        for name, value in bound.items():
            literal = _without_macro(value)
            if name in expected and not fits(literal, expected[name], accepts=_may_fit_later):
                place = f"{scope}/{selector}" if scope else selector
                macro = f" (from {value})" if value is not literal else ""
                is_uncalled = _may_fit_later(literal, expected[name], called=True)
                raise ConfigError(
                    f"{place.removeprefix('speechgpt_jax.')}.{name} = {literal!r}{macro}: expected"
                    f" {describe(expected[name])}{f'; write {literal}()' if is_uncalled else ''}."
                )


def _without_macro(value: Any) -> Any:
    """%RATE -> the value of the macro RATE."""
    while _is_macro(value) and (bound := _bindings(gin.config.macro, value.scopes)):
        value = bound["value"]
    return value


# Functions to which a reference %NAME refers.
_MACROS = gin.config.macro, gin.config._retrieve_constant


def _is_macro(value: Any) -> bool:
    return isinstance(value, gin.config.ConfigurableReference) and (
        value.configurable.wrapped is gin.config.macro
    )


def _may_fit_later(value: Any, annotation: Any, called: bool = False) -> bool:
    """Whether a reference may have a value of the type `annotation`: @f itself, @f() its result.

    With `called`, @f is taken for @f().
    """
    if value is gin.REQUIRED:
        return True
    if not isinstance(value, gin.config.ConfigurableReference):
        return False
    function = value.configurable.wrapped
    if function in _MACROS:
        return True
    if value.evaluate or called:
        return may_return(function, annotation)
    return fits(function, annotation)


def _require_arguments(
    function: Callable, given: Collection[str] = (), scopes: Sequence[str] = ()
) -> None:
    """Raises a ConfigError if `function`, or a reference in its arguments, lacks an argument.

    `given` are the arguments that don't come from gin.
    """
    bound = _bindings(function, scopes)
    for name, parameter in inspect.signature(function).parameters.items():
        is_optional = parameter.default is not inspect.Parameter.empty
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name in given or is_variadic or (is_optional and name not in bound):
            continue
        value = bound.get(name, gin.REQUIRED)
        for reference in gin.config.iterate_references(value):
            if reference.configurable.wrapped is gin.config._retrieve_constant:
                value = gin.REQUIRED
            elif reference.evaluate:
                _require_arguments(reference.configurable.wrapped, (), reference.scopes)
        if value is gin.REQUIRED:
            if function is gin.config.macro:
                raise ConfigError(f"%{'/'.join(scopes)} is not set.")
            raise ConfigError(
                f"{function.__qualname__}.{name} is not set: bind it in a gin file or by"
                f" --gin.{function.__qualname__}.{name}=VALUE."
            )


def _bindings(function: Callable, scopes: Sequence[str] = ()) -> dict[str, Any]:
    """{parameter: value that gin binds}, with unresolved references."""
    with gin.config_scope("/".join(scopes) or None):
        try:
            return gin.get_bindings(function, resolve_references=False)
        except ValueError:  # No gin file imports it.
            return {}


def _require_known_macro(binding: str) -> None:
    """Raises a ConfigError for an unknown macro: gin would define a misspelt one silently."""
    name = binding.partition("=")[0].strip()
    if "." in name:
        return
    known = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    if name not in known:
        raise ConfigError(f"no gin file defines the macro {name}.{_suggestion(name, known)}")


def _suggestion(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


# ---- messages ------------------------------------------------------------------------------------


def _message(error: Exception) -> str:
    """Gin's message as one line: the problem, the file and the line number."""
    if isinstance(error, RecursionError):
        return "the file includes itself, or includes a file that includes it."
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error}); save it as UTF-8."
    is_quoted = isinstance(error, (tokenize.TokenError, KeyError))
    text = str(error.args[0] if is_quoted and error.args else error)
    text = text.partition("\n  In call to configurable")[0].partition("\n  In bindings string")[0]
    # Here gin quotes the whole configuration.
    text = re.sub(r"(?s)No bindings specified for '(\w+)/.*", r"%\1 is not set.", text)
    return " ".join(text.split()) + _near_name(text)


def _near_name(text: str) -> str:
    """A hint at the known name nearest to the unknown one in gin's message."""
    if found := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        selectors = [selector for _, selector in gin.config._CONFIG]
        known = [name for selector in selectors for name in selector.split(".")[-2:]]
        hint = _suggestion(found[1].split(".")[-1].split("/")[-1], known)
        return f"{hint} A gin file must import the module of a name."
    found = re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text)
    if found and (configurable := gin.config._REGISTRY.get_match(found[1])):
        return _suggestion(found[2], inspect.signature(configurable.wrapped).parameters)
    return ""


@contextlib.contextmanager
def _config_errors(place: str = "") -> Iterator[None]:
    """Turns gin's exceptions into ConfigErrors; `place` names the file or binding at fault."""
    try:
        yield
    except CONFIG_ERRORS as error:
        message = _message(error)
        prefix = "" if not place or place in message else f"{place}: "
        raise ConfigError(prefix + message) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the error that gin logs for every search folder that lacks a file."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
