"""Trains one stage of the language model.

    python -m speechgpt_jax.train --gin_file=gin/runs/demo_stage1.gin --output_dir=runs/stage1 \\
        --gin.train.steps=100

The same command goes on where a stopped run was. On several hosts every process gets the same
command; --multihost tells those of a TPU pod that they belong together.
"""

import sys

from absl import flags

from speechgpt_jax import gin_utils
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.training import hosts, lm

OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the run: checkpoints, metrics, plots.", required=True
)
PROFILE_STEPS = flags.DEFINE_list(
    "profile_steps", None, "FIRST,LAST: steps traced by jax.profiler into OUTPUT_DIR/profile."
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "One of several processes, as the TPU pod, GKE or SLURM says."
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where no scheduler says it."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator_address.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator_address, from 0.")

STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code", 0, "After SIGTERM, for schedulers that start again what has failed."
)


def main():
    others = (MULTIHOST.value, COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
    try:
        with hosts.connected(*others), one_line_errors():
            keep_freed_memory()
            gin_utils.call(
                lm.train,
                output_dir=OUTPUT_DIR.value,
                profile_steps=profile_steps(),
                config_text=gin_utils.operative_config,
            )
    except SystemExit as stop:
        # A run that came to its end returns; 0 is that of SIGTERM.
        sys.exit(STOPPED_EXIT_CODE.value if stop.code == 0 else stop.code)


def profile_steps() -> tuple[int, int] | None:
    if PROFILE_STEPS.value is None:
        return None
    try:
        first, last = map(int, PROFILE_STEPS.value)
    except ValueError:
        given = ",".join(PROFILE_STEPS.value)
        raise UserError(f"--profile_steps={given}: give two steps, such as 20,22.") from None
    return first, last


if __name__ == "__main__":
    gin_utils.run(main)
