"""Programs in processes of their own, without seconds of imports for each.

One process per worker of pytest imports the slow libraries, and forks for every program.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent

# For all tests that fork: the first process that is started fixes what is imported.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("speechgpt_jax.training.lm", "clu.metric_writers", "matplotlib.figure"),
        *("apache_beam", "google.cloud.storage", "torch"),
    ]
)


def start(function: Callable, *args, output: Path, **variables: str) -> BaseProcess:
    """Starts a process that calls a function of a module.

    Args:
      function: `run_module` or another function that can be imported.
      args: its arguments.
      output: folder for what is printed, the files `stdout` and `stderr`.
      variables: the process's environment, on top of this one's.
    """
    for name in ("stdout", "stderr"):
        (output / name).write_bytes(b"")
    process = CONTEXT.Process(target=_call, args=(output, variables, function, args))
    process.start()
    return process


def run(function: Callable, *args, **variables: str) -> subprocess.CompletedProcess:
    """Calls a function in a process, to its end; what it printed is text."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(function, *args, output=Path(folder), **variables)
        process.join()
        printed = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(args, process.exitcode, *printed)


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_module(module: str, *arguments: str | os.PathLike) -> None:
    """`python -m module arguments...`, to be called in a process."""
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_on_eight_devices(program: str, *arguments: str | os.PathLike) -> None:
    """`python -c program arguments...` with eight CPU devices, to be called in a process."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    sys.argv = ["-c", *map(str, arguments)]
    exec(program, {"__name__": "__main__"})


def _call(output: Path, variables: dict[str, str], function: Callable, args: tuple) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ.update(variables)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(":")
    function(*args)
