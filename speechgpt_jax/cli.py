"""Runs any of the programs by name.

    speechgpt train --gin_file=gin/runs/demo_stage1.gin --output_dir=runs/stage1
    speechgpt extract-units --help

`speechgpt NAME ...` is `python -m speechgpt_jax.NAME ...` or `python -m tools.NAME ...`. Only the
program that runs is imported, so --help is fast.
"""

import ast
import importlib.util
import os
import pkgutil
import runpy
import sys
from pathlib import Path

from speechgpt_jax.errors import UserError, one_line_errors

MAINS = ("train", "evaluate", "infer", "chat", "serve", "precompile", "demo")
# Tools that only make sense in a checkout of the repository.
HIDDEN = {"bootstrap_venv"}


def main() -> None:
    """Entry point of the console command `speechgpt`."""
    programs = find_programs()
    arguments = sys.argv[1:]
    with one_line_errors():
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage(programs))
            return
        name = arguments[0].replace("_", "-")
        if name not in programs:
            raise UserError(f"speechgpt {name}: no such command; see speechgpt --help.")
    run(programs[name], arguments[1:])


def find_programs() -> dict[str, str]:
    """{"train": "speechgpt_jax.train", ..., "extract-units": "tools.extract_units", ...}."""
    import tools

    found = {name for _, name, is_package in pkgutil.iter_modules(tools.__path__) if not is_package}
    modules = [f"speechgpt_jax.{name}" for name in MAINS]
    modules += [f"tools.{name}" for name in sorted(found - HIDDEN)]
    return {module.rpartition(".")[2].replace("_", "-"): module for module in modules}


def usage(programs: dict[str, str]) -> str:
    """One line per program: its name and the first line of its docstring."""
    width = max(map(len, programs))
    lines = [f"  {name:{width}}  {summary(module)}" for name, module in programs.items()]
    return "\n".join(
        [
            "usage: speechgpt COMMAND [--FLAG=VALUE ...]",
            "",
            "commands:",
            *lines,
            "",
            "speechgpt COMMAND --help lists the flags of a command.",
        ]
    )


def summary(module: str) -> str:
    """First line of a module's docstring, read without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, module
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    return docstring.partition("\n")[0]


def run(module: str, arguments: list[str]) -> None:
    """Runs `module` as `python -m MODULE ARGUMENTS` would."""
    sys.argv[1:] = arguments
    # As with `python -m`, a recipe can import modules of the working folder. It comes last in
    # sys.path, so that it can't hide our modules.
    sys.path.append(os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
