"""The batch script that trains on GPU nodes of a SLURM cluster."""

import shlex
from collections.abc import Sequence

from speechgpt_jax.launch.command import GRACE_SECONDS, STOPPED_EXIT_CODE, train_command

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
srun --kill-on-bad-exit=1 {command}
code=$?
if [ $code -eq {stopped} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


def batch_script(
    name: str,
    nodes: int,
    gpus_per_node: int,
    cpus_per_gpu: int,
    hours: int,
    train_arguments: Sequence[str],
    options: Sequence[str] = (),
) -> str:
    """Batch script that starts one process per GPU and requeues itself after SIGTERM.

    Args:
      name: name of the job and of its log file.
      nodes, gpus_per_node, cpus_per_gpu: the job's resources.
      hours: time limit after which the job is stopped and requeued.
      train_arguments: arguments of `speechgpt_jax.train`.
      options: further options of sbatch, such as "--partition=gpu".
    """
    return SCRIPT.format(
        name=name,
        nodes=nodes,
        gpus=gpus_per_node,
        cpus=cpus_per_gpu,
        hours=hours,
        grace=GRACE_SECONDS,
        options="".join(f"#SBATCH {option}\n" for option in options),
        command=shlex.join(train_command(".venv/bin/python", train_arguments)),
        stopped=STOPPED_EXIT_CODE,
    )
