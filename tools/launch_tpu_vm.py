"""Requests a TPU VM pod, installs this project on it and trains on all of its hosts.

    python -m tools.launch_tpu_vm create --name=speechgpt --zone=us-west4-a \\
        --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot
    python -m tools.launch_tpu_vm setup  --name=speechgpt --zone=us-west4-a --source=GIT_URL
    python -m tools.launch_tpu_vm train  --name=speechgpt --zone=us-west4-a -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1
    python -m tools.launch_tpu_vm delete --name=speechgpt --zone=us-west4-a

--dry_run prints the gcloud command instead of running it. `create` queues the request (queued
resources); `setup` works once it is granted. --slices=2 requests two slices, joined by the
data-centre network. After a preemption: delete, create, setup, and the same `train`, which resumes
from the last checkpoint.
"""

import argparse
import shlex

from speechgpt_jax import arguments
from speechgpt_jax.arguments import Parser, name, nonempty, positive_int
from speechgpt_jax.launch import tpu_vm


def command(args: argparse.Namespace) -> list[str]:
    """The gcloud command of the chosen step."""
    where = args.name, tpu_vm.location(args.zone, args.project)
    if args.step == "create":
        accelerator = args.accelerator_type, args.runtime_version
        return tpu_vm.create(*where, *accelerator, slices=args.slices, spot=args.spot)
    if args.step == "setup":
        return tpu_vm.setup(*where, args.source)
    if args.step == "train":
        return tpu_vm.train(*where, args.train_arguments)
    return tpu_vm.delete(*where)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    words = command(args)
    if args.dry_run:
        print(shlex.join(words))
        return 0
    return arguments.run_program(words)


def parser() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--name", type=name, required=True, help="name of the queued resource")
    common.add_argument("--zone", type=name, required=True, help="such as us-west4-a")
    common.add_argument("--project", type=nonempty, help="by default gcloud's default project")
    common.add_argument("--dry_run", action="store_true", help="only print the command")
    parser = Parser(__doc__)
    steps = parser.add_subparsers(required=True, dest="step")
    create = steps.add_parser("create", parents=[common], help="request the pod")
    create.add_argument(
        "--accelerator_type", type=name, required=True, help="such as v5litepod-256"
    )
    create.add_argument(
        "--runtime_version", type=name, required=True, help="such as v2-alpha-tpuv5-lite"
    )
    create.add_argument(
        "--slices", type=positive_int, default=1, help="number of slices (default: 1)"
    )
    create.add_argument("--spot", action="store_true", help="cheaper, may be preempted")
    setup = steps.add_parser("setup", parents=[common], help="install this project on every host")
    setup.add_argument("--source", type=nonempty, required=True, help="git URL of this repository")
    train = steps.add_parser("train", parents=[common], help="train on all hosts")
    train.add_argument("train_arguments", nargs="+", help="arguments of train, after --")
    steps.add_parser("delete", parents=[common], help="delete the pod")
    return parser


if __name__ == "__main__":
    arguments.run(main)
