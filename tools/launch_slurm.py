"""Trains or answers on GPU nodes of a SLURM cluster, one process per GPU.

    python -m tools.launch_slurm --name=stage1 --nodes=4 --gpus_per_node=8 --hours=24 -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=/scratch/stage1
    python -m tools.launch_slurm --name=answers --nodes=1 --module=speechgpt_jax.infer -- \\
        --run=/scratch/stage3 --prompts=questions.jsonl --answers=/scratch/answers

Run it in the folder of this repository on the cluster's file system. --dry_run prints the batch
script instead of submitting it. Shortly before its time limit, or when its nodes are preempted, the
job saves a checkpoint and requeues itself; after a crash it requeues itself too. Each process
answers its own share of the prompts, on its own GPU.
"""

from speechgpt_jax import arguments, processes
from speechgpt_jax.arguments import IllegalValue, Parser, at_least, name, nonempty, positive_int
from speechgpt_jax.launch.command import add_arguments, chosen
from speechgpt_jax.launch.slurm import batch_script


def sbatch_option(text: str) -> str:
    """Type of sbatch options: one word that starts with a dash."""
    if not text.startswith("-") or text.split() != [text]:
        raise IllegalValue(f"expected one option, such as --partition=gpu, got {text!r}")
    return text


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    command = chosen(args)
    script = batch_script(
        args.name,
        args.nodes,
        args.gpus_per_node,
        args.cpus_per_gpu,
        args.hours,
        command,
        options=args.sbatch,
        image=args.image,
        mounts=args.mounts,
        max_restarts=args.max_restarts,
    )
    # A container has its own files.
    command.check_values(runs_here=args.image is None)
    if args.dry_run:
        print(script, end="")
        return 0
    return processes.run(["sbatch"], script, "--dry_run prints the script without it")


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--name", type=name, required=True, help="name of the job")
    parser.add_argument("--nodes", type=positive_int, required=True, help="number of nodes")
    parser.add_argument("--gpus_per_node", type=positive_int, default=8, help="default: 8")
    parser.add_argument("--cpus_per_gpu", type=positive_int, default=12, help="default: 12")
    parser.add_argument(
        "--hours",
        type=positive_int,
        default=24,
        help="time limit after which the job is requeued (default: 24)",
    )
    parser.add_argument(
        "--sbatch",
        type=sbatch_option,
        action="append",
        default=[],
        help="further option of sbatch, such as --sbatch=--partition=gpu; may be repeated",
    )
    parser.add_argument("--image", type=nonempty, help="container image, run by pyxis")
    parser.add_argument(
        "--mounts", type=nonempty, help="folders in the container, such as /scratch:/scratch"
    )
    parser.add_argument(
        "--max_restarts",
        type=at_least(0),
        default=5,
        help="restarts after crashes; those after stops don't count (default: 5)",
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the script")
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    arguments.run(main)
