"""The batch script that trains or answers on GPU nodes of a SLURM cluster."""

import shlex
from collections.abc import Sequence

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import GRACE_SECONDS, Command

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --exclusive
#SBATCH --time={hours}:00:00
#SBATCH --signal=TERM@{grace}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
{options}
# Since Slurm 22.05 srun doesn't take it from the job, and all tasks would share one core.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 {container}{command}
code=$?
# A stopped run is always started again, a crashed one {max_restarts} times: a file counts them.
crashes={name}-$SLURM_JOB_ID.crashes
if [ $code -ne 0 ] && [ $code -ne {stopped} ]; then
  echo "exit code $code" >> "$crashes"
  [ "$(wc -l < "$crashes")" -le {max_restarts} ] || exit $code
fi
[ $code -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
"""


def batch_script(
    name: str,
    nodes: int,
    gpus_per_node: int,
    cpus_per_gpu: int,
    hours: int,
    command: Command,
    options: Sequence[str] = (),
    image: str | None = None,
    mounts: str | None = None,
    max_restarts: int = 5,
) -> str:
    """Batch script that starts one process per GPU and requeues itself after SIGTERM and crashes.

    Args:
      name: name of the job and of its log file.
      nodes, gpus_per_node, cpus_per_gpu: the job's resources.
      hours: time limit after which the job is stopped and requeued.
      command: what runs in each process.
      options: further options of sbatch, such as "--partition=gpu".
      image: container image, for clusters with pyxis; by default the checkout's `.venv`.
      mounts: folders that the container sees, such as "/scratch:/scratch".
      max_restarts: restarts after crashes; those after stops, as at the time limit, don't count.

    Raises:
      UserError: there are mounts without a container.
    """
    if mounts and not image:
        raise UserError("--mounts is for a container; give --image too.")
    python, container = ".venv/bin/python", ""
    if image:
        flags = [
            f"--container-image={image}",
            *([f"--container-mounts={mounts}"] if mounts else []),
        ]
        python, container = "python", shlex.join(flags) + " "
    return SCRIPT.format(
        name=name,
        nodes=nodes,
        gpus=gpus_per_node,
        cpus=cpus_per_gpu,
        hours=hours,
        grace=GRACE_SECONDS,
        options="".join(f"#SBATCH {option}\n" for option in options),
        container=container,
        command=shlex.join(command.words(python)),
        max_restarts=max_restarts,
        stopped=command.stopped_exit_code,
    )
