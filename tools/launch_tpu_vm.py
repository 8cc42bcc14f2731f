"""Requests TPU VMs, installs this project on them and runs it on all of their hosts.

    python -m tools.launch_tpu_vm create --name=speechgpt --zone=us-west4-a \\
        --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot
    python -m tools.launch_tpu_vm setup  --name=speechgpt --zone=us-west4-a --source=GIT_URL
    python -m tools.launch_tpu_vm train  --name=speechgpt --zone=us-west4-a -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1
    python -m tools.launch_tpu_vm status --name=speechgpt --zone=us-west4-a
    python -m tools.launch_tpu_vm logs   --name=speechgpt --zone=us-west4-a
    python -m tools.launch_tpu_vm stop   --name=speechgpt --zone=us-west4-a
    python -m tools.launch_tpu_vm delete --name=speechgpt --zone=us-west4-a

Answers instead of training, on all hosts:

    python -m tools.launch_tpu_vm train --name=speechgpt --zone=us-west4-a \\
        --module=speechgpt_jax.infer -- --run=gs://BUCKET/stage3 \\
        --prompts=gs://BUCKET/questions.jsonl --answers=gs://BUCKET/answers --mesh=4

`create` queues the request (queued resources); `setup` works once it is granted; `train` starts the
run and returns; `stop` saves a checkpoint first. --slices=2 requests two slices, joined by the
data-centre network, for which `train` needs a mesh: --gin_file=gin/meshes/two_slices.gin after the
recipe. One command does all of it, on any machine that stays on, and requests the
slices again after a preemption; `stop` ends it too:

    python -m tools.launch_tpu_vm watch --name=speechgpt --zone=us-west4-a \\
        --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot \\
        --source=GIT_URL -- --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1

--dry_run prints the gcloud command instead of running it; for all steps but watch.
"""

import argparse
import dataclasses
import functools
import shlex
import sys

from speechgpt_jax import arguments, processes
from speechgpt_jax.arguments import Parser, at_least, name, nonempty, positive_float, positive_int
from speechgpt_jax.launch import tpu_vm
from speechgpt_jax.launch.command import add_arguments, chosen
from speechgpt_jax.launch.slices import check_mesh
from speechgpt_jax.launch.watch import watch


def request(args: argparse.Namespace) -> tpu_vm.Request:
    """The request in the flags of `create` and `watch`."""
    fields = [field.name for field in dataclasses.fields(tpu_vm.Request)]
    return tpu_vm.Request(**{field: getattr(args, field) for field in fields})


def command(args: argparse.Namespace, pod: tpu_vm.Pod) -> list[str]:
    """The gcloud command of the chosen step."""
    if args.step == "create":
        return tpu_vm.create(pod, request(args))
    if args.step == "setup":
        return tpu_vm.setup(pod, args.source)
    if args.step == "train":
        run = chosen(args)
        run.check_values()
        return tpu_vm.train(pod, run)
    if args.step == "logs":
        return tpu_vm.logs(pod, args.lines)
    return {"status": tpu_vm.status, "stop": tpu_vm.stop, "delete": tpu_vm.delete}[args.step](pod)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    pod = tpu_vm.Pod(args.name, args.zone, args.project)
    if args.step == "watch":
        slices, run = request(args), chosen(args)
        if note := check_mesh(args.slices, run):
            print(note, file=sys.stderr)
        run.check_values()
        watch(
            pod,
            slices,
            args.source,
            run,
            max_restarts=args.max_restarts,
            max_failures=args.max_failures,
            seconds=args.seconds,
            straggler_seconds=60 * args.straggler_minutes,
            call_seconds=60 * args.call_minutes,
            # At once also where the output is a file.
            log=functools.partial(print, flush=True),
        )
        return 0
    words = command(args, pod)
    if args.dry_run:
        print(shlex.join(words))
        return 0
    return processes.run(words, remedy="--dry_run prints the command without it")


def parser() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--name", type=name, required=True, help="name of the queued resource")
    common.add_argument("--zone", type=name, required=True, help="such as us-west4-a")
    common.add_argument("--project", type=nonempty, help="Google Cloud project; default: gcloud's")
    dry = Parser(add_help=False)
    dry.add_argument("--dry_run", action="store_true", help="only print the command")
    slices = Parser(add_help=False)
    add = slices.add_argument
    add("--accelerator_type", type=name, required=True, help="such as v5litepod-256")
    add("--runtime_version", type=name, required=True, help="such as v2-alpha-tpuv5-lite")
    add("--slices", type=positive_int, default=1, help="number of slices (default: 1)")
    kind = slices.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="cheaper, may be preempted")
    kind.add_argument(
        "--reserved", action="store_true", help="take chips of the project's reservation"
    )
    add("--service_account", type=nonempty, help="account with which the hosts reach buckets")
    add("--network", type=nonempty, help="network of the hosts (default: default)")
    add("--subnetwork", type=nonempty, help="subnetwork of the hosts")
    add("--labels", type=nonempty, help="such as team=speech,run=stage1")
    source = Parser(add_help=False)
    source.add_argument("--source", type=nonempty, required=True, help="git URL of this repository")
    train = Parser(add_help=False)
    add_arguments(train)

    parser = Parser(__doc__)
    steps = parser.add_subparsers(required=True, dest="step")
    once = [common, dry]
    steps.add_parser("create", parents=[*once, slices], help="request the slices")
    steps.add_parser("setup", parents=[*once, source], help="install this project on every host")
    steps.add_parser("train", parents=[*once, train], help="start the run on all hosts")
    steps.add_parser("status", parents=once, help="print the state of the run on each host")
    logs = steps.add_parser("logs", parents=once, help="follow the first host's output")
    logs.add_argument(
        "--lines", type=positive_int, default=50, help="last lines shown first (default: 50)"
    )
    steps.add_parser("stop", parents=once, help="save a checkpoint and end the run")
    steps.add_parser("delete", parents=once, help="delete the slices")
    keep = steps.add_parser(
        "watch",
        parents=[common, slices, source, train],
        help="do all of it, again after each preemption, until the run has finished",
    )
    keep.add_argument(
        "--max_restarts", type=at_least(0), default=5, help="restarts after crashes (default: 5)"
    )
    keep.add_argument(
        "--max_failures",
        type=positive_int,
        default=20,
        help="failures in a row of a gcloud command, or of the request, that end it (default: 20)",
    )
    keep.add_argument(
        "--straggler_minutes",
        type=positive_float,
        default=10.0,
        help="minutes that the other hosts have to end after the first (default: 10)",
    )
    keep.add_argument(
        "--call_minutes",
        type=positive_float,
        default=20.0,
        help="minutes after which a gcloud command is given up (default: 20)",
    )
    keep.add_argument(
        "--seconds",
        type=positive_float,
        default=60.0,
        help="seconds between two checks (default: 60)",
    )
    return parser


if __name__ == "__main__":
    arguments.run(main)
