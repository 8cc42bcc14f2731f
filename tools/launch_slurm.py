"""Trains on GPU nodes of a SLURM cluster, a process a GPU.

    python -m tools.launch_slurm --name=stage1 --nodes=4 --gpus_per_node=8 --hours=24 -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=/scratch/stage1

To be called in the folder of this repository on the cluster's file system. --dry_run prints the
batch script instead of submitting it. Before its time is up, or when its nodes are preempted, the
job saves, and queues itself again to go on.
"""

import argparse
import shlex
import subprocess
import sys

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
{extra}
srun --kill-on-bad-exit=1 {command}
code=$?
if [ $code -eq {stopped} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


def script(args: argparse.Namespace) -> str:
    """The batch script."""
    return SCRIPT.format(
        name=args.name,
        nodes=args.nodes,
        gpus=args.gpus_per_node,
        cpus=args.cpus_per_gpu,
        hours=args.hours,
        grace=GRACE_SECONDS,
        extra="".join(f"#SBATCH {option}\n" for option in args.sbatch),
        command=shlex.join(train_command(".venv/bin/python", args.train_arguments)),
        stopped=STOPPED_EXIT_CODE,
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--cpus_per_gpu", type=int, default=12)
    parser.add_argument("--hours", type=int, default=24, help="of one turn in the queue")
    parser.add_argument(
        "--sbatch", action="append", default=[], help="another option, such as --partition=gpu"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the script alone")
    parser.add_argument("train_arguments", nargs="+", help="after --: those of train")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    text = script(args := parse(arguments))
    if args.dry_run:
        print(text, end="")
        return 0
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
