"""Trains on a TPU VM pod: asks for it, sets it up, trains on all of its hosts.

    python -m tools.launch_tpu_vm create --name=speechgpt --zone=us-west4-a \\
        --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot
    python -m tools.launch_tpu_vm setup  --name=speechgpt --zone=us-west4-a --source=GIT_URL
    python -m tools.launch_tpu_vm train  --name=speechgpt --zone=us-west4-a -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1
    python -m tools.launch_tpu_vm delete --name=speechgpt --zone=us-west4-a

--dry_run prints the gcloud command instead. `create` queues the request (queued resources) and
`setup` works once it is granted; --slices=2 asks for two, joined by the data-centre network.
After a preemption: delete, create, setup, and the same `train` goes on from the last checkpoint.
"""

import argparse
import shlex
import subprocess
import sys

QUEUED_RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
CHECKOUT = "~/speechgpt_jax"


def create(args: argparse.Namespace) -> list[str]:
    nodes = [f"--node-id={args.name}"]
    if args.slices > 1:
        nodes = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    flags = [
        f"--accelerator-type={args.accelerator_type}",
        f"--runtime-version={args.runtime_version}",
        *(["--spot"] if args.spot else []),
    ]
    return [*QUEUED_RESOURCES, "create", args.name, *location(args), *nodes, *flags]


def setup(args: argparse.Namespace) -> list[str]:
    source = shlex.quote(args.source)
    return on_all_hosts(
        args,
        f"test -d {CHECKOUT} || git clone -q {source} {CHECKOUT}; cd {CHECKOUT} && git pull -q &&"
        " python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'",
    )


def train(args: argparse.Namespace) -> list[str]:
    arguments = shlex.join(args.train_arguments)
    return on_all_hosts(
        args,
        f"cd {CHECKOUT} && .venv/bin/python -m speechgpt_jax.train --multihost {arguments}",
    )


def delete(args: argparse.Namespace) -> list[str]:
    return [*QUEUED_RESOURCES, "delete", args.name, *location(args), "--force", "--quiet"]


def on_all_hosts(args, command: str) -> list[str]:
    # gcloud connects to 64 hosts at a time, and the first 64 would wait for the rest for ever.
    every = ["--node=all", "--worker=all", "--batch-size=all", f"--command={command}"]
    return [*QUEUED_RESOURCES, "ssh", args.name, *location(args), *every]


def location(args) -> list[str]:
    return [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]


def parse(arguments: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", required=True, help="of the queued resource")
    common.add_argument("--zone", required=True)
    common.add_argument("--project", help="by default that of gcloud's configuration")
    common.add_argument("--dry_run", action="store_true", help="print the command, run nothing")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    steps = parser.add_subparsers(required=True)
    parsers = {}
    for step in (create, setup, train, delete):
        parsers[step] = steps.add_parser(step.__name__, parents=[common])
        parsers[step].set_defaults(step=step)
    parsers[create].add_argument("--accelerator_type", required=True, help="such as v5litepod-256")
    parsers[create].add_argument("--runtime_version", required=True, help="of the TPU software")
    parsers[create].add_argument("--slices", type=int, default=1)
    parsers[create].add_argument("--spot", action="store_true", help="cheaper, may be preempted")
    parsers[setup].add_argument("--source", required=True, help="git URL of this repository")
    parsers[train].add_argument("train_arguments", nargs="+", help="after --: those of train")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    command = args.step(args)
    if args.dry_run:
        print(shlex.join(command))
        return 0
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
