"""Training runs of benchmarks: each a command of its own, which resumes if it was interrupted."""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from speechgpt_jax import arguments


def add_records_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --records, the corpus on which runs are trained."""
    parser.add_argument(
        "--records",
        type=arguments.existing_folder,
        required=True,
        help="what tools.build_demo_corpus wrote",
    )


def train(gin_file: str, run: pathlib.Path, settings: Mapping[str, object]) -> None:
    """Trains to the end, with `settings` as bindings of gin."""
    command = [sys.executable, "-m", "speechgpt_jax.train", f"--output_dir={run}"]
    command += [f"--gin_file={gin_file}"]
    command += [f"--gin.{key}={value}" for key, value in settings.items()]
    subprocess.run(command, check=True)
