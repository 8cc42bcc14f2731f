"""Trains one stage of the language model.

    python -m speechgpt_jax.train --gin_file=gin/runs/demo_stage1.gin --output_dir=runs/stage1 \\
        --gin.train.steps=100

The same command resumes a stopped run from its last checkpoint. On several hosts every process
gets the same command, with --multihost on a TPU pod.
"""

import contextlib
import importlib.util
import re
import sys

from absl import flags

from speechgpt_jax import compilation_cache, gin_utils
from speechgpt_jax.arguments import (
    IllegalValue,
    at_least,
    define,
    local_output_file,
    output_folder,
    positive_int,
)
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.training import process_flags

flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(compilation_cache)


def two_steps(text: str) -> tuple[int, int]:
    """Type of FIRST,LAST: two step numbers, such as 20,22."""
    try:
        first, last = map(positive_int, text.split(","))
    except ValueError:
        raise IllegalValue(f"expected two steps, such as 20,22, got {text!r}") from None
    if first > last:
        raise IllegalValue(f"expected two steps in ascending order, such as 20,22, got {text!r}")
    return first, last


def prometheus_file(text: str) -> str:
    """Type of files for the node exporter of this machine, which reads only those called .prom."""
    if not text.endswith(".prom"):
        raise IllegalValue(f"expected a file whose name ends in .prom, got {text!r}")
    return local_output_file(text)


def wandb_project(text: str) -> str:
    """Type of names of projects of Weights & Biases, whose library must be installed."""
    if not re.fullmatch(r"[^/\\#?%:\s]{1,128}", text):
        raise IllegalValue(
            f"expected at most 128 characters without / \\ # ? % : and blanks, got {text!r}"
        )
    if importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
    return text


OUTPUT_DIR = define(
    "output_dir",
    output_folder,
    None,
    "Folder of the run: checkpoints, metrics, plots.",
    required=True,
)
PROFILE_STEPS = define(
    "profile_steps",
    two_steps,
    None,
    "FIRST,LAST: steps traced by jax.profiler into OUTPUT_DIR/profile.",
)
PROMETHEUS_FILE = define(
    "prometheus_file",
    prometheus_file,
    None,
    "File on this machine with the newest metrics for Prometheus's node exporter; its name ends in"
    " .prom.",
)
WANDB = define(
    "wandb",
    wandb_project,
    None,
    "Project of Weights & Biases that gets the metrics too; needs the extra `wandb`.",
)
STOPPED_EXIT_CODE = define(
    "stopped_exit_code",
    at_least(0, at_most=255),
    0,
    "Exit code after SIGTERM; not 0 if the scheduler restarts only jobs that failed.",
)


def main() -> None:
    # Importing JAX and TensorFlow takes seconds; wrong flags are reported before.
    from speechgpt_jax.malloc import keep_freed_memory
    from speechgpt_jax.training import lm
    from speechgpt_jax.training.phases import Phases
    from speechgpt_jax.training.watchdog import watched

    compilation_cache.use()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(process_flags.connected())
            stack.enter_context(one_line_errors())
            keep_freed_memory()
            phases = Phases()
            watchdog = gin_utils.arguments(lm.train, ["watchdog"])["watchdog"]
            stack.enter_context(watched(phases, watchdog, OUTPUT_DIR.value))
            # `call` reads the data, which may take long, before `train` checks its arguments.
            names = ["model", "tokenizer", "start_from", "trainable", "answered"]
            arguments = gin_utils.arguments(lm.train, names)
            lm.check(**arguments, output_dir=OUTPUT_DIR.value)
            gin_utils.call(
                lm.train,
                output_dir=OUTPUT_DIR.value,
                profile_steps=PROFILE_STEPS.value,
                prometheus_file=PROMETHEUS_FILE.value,
                wandb_project=WANDB.value,
                config_text=gin_utils.operative_config,
                phases=phases,
            )
    except SystemExit as stop:
        # `train` returns when the run is finished; SystemExit(0) means that SIGTERM stopped it.
        sys.exit(STOPPED_EXIT_CODE.value if stop.code == 0 else stop.code)


if __name__ == "__main__":
    gin_utils.run(main)
