"""Command lines in documents, parsed as their mains do.

Apart from the tests of documents, since each process that parses imports this file.
"""

import argparse
import dataclasses
import importlib
import runpy
import shlex
import sys

from absl import app, flags


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m MODULE ARGUMENTS` in a document."""

    document: str
    module: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: python -m {shlex.join([self.module, *self.arguments])}"

    def flags(self) -> dict[str, str]:
        pairs = (a[2:].partition("=") for a in self.arguments if a.startswith("--"))
        return {name: value for name, _, value in pairs if value}

    def positionals(self) -> list[str]:
        return [argument for argument in self.arguments if not argument.startswith("--")]


class Parsed(BaseException):
    """The command line is parsed: no need to run the command."""


def mistakes(given: list[Command]) -> list[str]:
    """Parses command lines as their mains do; what is wrong with each, or "".

    Runs in a process of its own. Paths in the documents need not exist here, so the types that look
    for them are replaced.
    """
    arguments = importlib.import_module("speechgpt_jax.arguments")
    for name in ("path", "file", "folder"):
        setattr(arguments, f"existing_{name}", arguments.nonempty)
    arguments.output_folder = arguments.output_file = arguments.nonempty
    for name in ("parse_args", "parse_known_args"):
        method = stop_after(getattr(argparse.ArgumentParser, name))
        setattr(argparse.ArgumentParser, name, method)
    app.run = parse_flags
    return [mistake_in(command) for command in given]


def mistake_in(command: Command) -> str:
    """What is wrong with a command line, or ""; the next one may define the same flags again."""
    defined = set(flags.FLAGS)
    sys.argv = [command.module, *command.arguments]
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        return "it never parsed its command line"
    except Parsed:
        return ""
    except BaseException as error:
        is_help = isinstance(error, SystemExit) and not error.code
        return "" if is_help else f"{type(error).__name__}: {error}"
    finally:
        for name in set(flags.FLAGS) - defined:
            delattr(flags.FLAGS, name)
        for shared in ("decoding.flags", "training.process_flags"):
            if module := sys.modules.pop(f"speechgpt_jax.{shared}", None):
                delattr(sys.modules[module.__package__], shared.partition(".")[2])


def stop_after(method):
    """`method` of argparse's parser, followed by Parsed unless another such method called it."""

    def parse_arguments(*args, **kwargs):
        stop_after.depth += 1
        try:
            result = method(*args, **kwargs)
        finally:
            stop_after.depth -= 1
        if stop_after.depth == 0:
            raise Parsed
        return result

    return parse_arguments


stop_after.depth = 0


def parse_flags(main, argv=None, flags_parser=flags.FLAGS):
    """`absl.app.run` that parses flags, and gin if the main has --gin_file, and stops there."""
    flags_parser(argv or sys.argv)
    if "gin_file" in flags.FLAGS:
        gin_utils = importlib.import_module("speechgpt_jax.gin_utils")
        _, bindings = gin_utils.split_arguments(sys.argv)
        gin_utils.parse(flags.FLAGS.gin_file, bindings, complete=False)
    raise Parsed
