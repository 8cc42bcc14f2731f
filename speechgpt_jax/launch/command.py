"""The command that launchers start on every host, and its exit codes."""

import argparse
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import itertools
import os.path
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from speechgpt_jax import gin_utils
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_remote

# Time from SIGTERM to SIGKILL, to finish the current step and to write a checkpoint.
GRACE_SECONDS = 300
# EX_TEMPFAIL of sysexits.h.
SAVED_EXIT_CODE = 75
TRAIN = "speechgpt_jax.train"


@dataclasses.dataclass(frozen=True)
class Main:
    """A main that launchers can start.

    Attributes:
      flags: flags that every launcher gives it.
      required: flags that must be among its arguments.
      reads_gin: it has gin's flags.
      stopped_exit_code: its exit code after SIGTERM, which doesn't count as a crash.
    """

    flags: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    reads_gin: bool = True
    stopped_exit_code: int = 128 + signal.SIGTERM


MAINS = {
    TRAIN: Main(
        (f"--stopped_exit_code={SAVED_EXIT_CODE}",),
        required=("gin_file", "output_dir"),
        stopped_exit_code=SAVED_EXIT_CODE,
    ),
    "speechgpt_jax.infer": Main(required=("answers",), reads_gin=False),
    "speechgpt_jax.evaluate": Main(),
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A main and its arguments, the same on every host.

    Attributes:
      arguments: such as ["--gin_file=RECIPE", "--output_dir=gs://BUCKET/stage1"].
      module: a key of MAINS.
    """

    arguments: Sequence[str]
    module: str = TRAIN

    def words(self, python: str, *, joins: bool = False) -> list[str]:
        """`python -m MODULE FLAGS ARGUMENTS` as a list of words.

        Args:
          python: the interpreter.
          joins: add --multihost, with which the main finds the other processes of a TPU pod.
        """
        main = MAINS[self.module]
        multihost = ["--multihost"] if joins else []
        return [python, "-m", self.module, *main.flags, *multihost, *self.arguments]

    def check_flags(self) -> None:
        """Raises a UserError if the main has no flag of such a name, or lacks a required one."""
        known = flag_names(self.module)
        for word in self.arguments:
            name = re.match(r"--?([A-Za-z]\w*)(\.?)", word)
            if not name or (name[2] and name[1] == "gin" and MAINS[self.module].reads_gin):
                continue
            if known and not {name[1], name[1].removeprefix("no")} & known:
                meant = difflib.get_close_matches(name[1], known, 1, cutoff=0.75)
                hint = f"; did you mean --{meant[0]}?" if meant else "; see its --help."
                raise UserError(f"{self.module} has no flag --{name[1]}{hint}")
        for flag in MAINS[self.module].required:
            if not self.values(flag):
                raise UserError(f"{self.module} needs --{flag}=...: give it after `--`.")

    def check_outputs(self) -> None:
        """Raises a UserError if the output is on the disk of a pod, which ends with the job."""
        for flag in ("output_dir", "answers"):
            for path in self.values(flag):
                if not is_remote(path):
                    raise UserError(
                        f"--{flag}={path} is on the disk of a pod, which is lost with it; give a"
                        " folder on gs://."
                    )

    def values(self, flag: str) -> list[str]:
        """Values of a flag, --FLAG=VALUE or in two words, in their order."""
        found = []
        for word, following in itertools.zip_longest(self.arguments, self.arguments[1:]):
            name, equals, value = word.partition("=")
            if name in (f"--{flag}", f"-{flag}") and (equals or following is not None):
                found.append(value if equals else following)
        return found

    @functools.cached_property
    def gin(self) -> gin_utils.Written:
        """Bindings of its gin files and flags, as written; a UserError if a file can't be read."""
        _, bindings = gin_utils.split_arguments(self.arguments)
        return gin_utils.read(self.values("gin_file"), bindings, self._search_paths)

    def check_gin_files(self) -> None:
        """Raises a UserError if a gin file can't be read, or its path is relative and not here."""
        for file in self.gin.missing:
            if not (is_remote(file) or os.path.isabs(file) or self._search_paths):
                raise UserError(
                    f"the gin file {file!r} is neither in this folder nor in the package; call the"
                    " launcher in the checkout that has it."
                )

    def check_values(self, *, runs_here: bool = False) -> None:
        """Lets the main's Python packages check gin's files and values, which takes seconds.

        Args:
          runs_here: the main will run in this folder: the values of all flags are checked.

        Raises:
          UserError: the main would refuse its arguments.
        """
        if importlib.util.find_spec("seqio") is None:  # The extra `train` is on the hosts only.
            return
        if runs_here:
            message = _refusal(self.module, *self.words("")[3:])
        elif MAINS[self.module].reads_gin and not self.gin.missing:
            flags = ("gin_file", "gin_search_paths")
            given = [f"--{flag}={value}" for flag in flags for value in self.values(flag)]
            bindings = [word for word in self.arguments if word.startswith("--gin.")]
            message = _refusal(None, *given, *bindings)
        else:
            return
        if message:
            raise UserError(message)

    @property
    def _search_paths(self) -> list[str]:
        return [path for value in self.values("gin_search_paths") for path in value.split(",")]

    @property
    def name(self) -> str:
        """ "train", "infer" or "evaluate"."""
        return self.module.rpartition(".")[2]

    @property
    def stopped_exit_code(self) -> int:
        """Its exit code after SIGTERM."""
        return MAINS[self.module].stopped_exit_code

    @property
    def digest(self) -> str:
        """A name by which the runs of two commands can be told apart."""
        words = "\0".join([self.module, *self.arguments])
        return hashlib.sha256(words.encode()).hexdigest()[:12]


@functools.cache
def flag_names(module: str) -> frozenset[str]:
    """Names of a main's flags; none if it can't be imported here.

    A process of its own imports it, because mains have flags of the same names.
    """
    program = f"import {module}; from absl import flags; print(*flags.FLAGS)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    of_gin = ("gin_file", "gin_search_paths") if MAINS[module].reads_gin else ()
    return frozenset() if done.returncode else frozenset((*done.stdout.split(), *of_gin))


@functools.cache
def _refusal(module: str | None, *words: str) -> str | None:
    """The one line by which a main, or gin alone, refuses arguments.

    A process of its own reads them, because gin's files import JAX and TensorFlow.
    """
    imported = f"import {module}; " if module else ""
    if module and not MAINS[module].reads_gin:
        program = f"import {module} as main; main.arguments.run_with_flags(main.check_flags)"
    else:
        program = f"{imported}from speechgpt_jax import gin_utils; gin_utils.run(lambda: None)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return lines[-1].removeprefix("Error: ") if done.returncode and lines else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --module and, after `--`, the main's arguments."""
    parser.add_argument(
        "--module",
        choices=MAINS,
        default=TRAIN,
        help=f"main that runs on every host (default: {TRAIN})",
    )
    parser.add_argument("main_arguments", nargs="+", help="arguments of --module, after --")


def chosen(args: argparse.Namespace) -> Command:
    """The command in the arguments that `add_arguments` has added.

    Raises:
      UserError: the main has no such flag, lacks one, or a gin file isn't there.
    """
    command = Command(args.main_arguments, args.module)
    command.check_flags()
    command.check_gin_files()
    return command
