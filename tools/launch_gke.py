"""Trains or answers on TPU slices of a GKE cluster, by a JobSet like those of XPK.

    python -m tools.launch_gke --name=stage1 --image=REGISTRY/speechgpt_jax \\
        --accelerator=tpu-v5-lite-podslice --topology=16x16 --slices=1 --spot -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1
    python -m tools.launch_gke --name=answers --image=REGISTRY/speechgpt_jax \\
        --accelerator=tpu-v6e-slice --topology=4x4 --module=speechgpt_jax.infer -- \\
        --run=gs://BUCKET/stage3 --prompts=gs://BUCKET/questions.jsonl \\
        --answers=gs://BUCKET/answers --mesh=4 --dtype=bfloat16

--dry_run prints the manifest instead of applying it. The cluster needs the JobSet controller, and
the output a bucket. When a node is preempted all pods save a checkpoint if the state can be written
in the time that they have (15 seconds on spot nodes, 5 minutes elsewhere), and the JobSet restarts
all of them; only crashes count towards --max_restarts. A state of 7B is too large for 15 seconds:
what a preemption costs at most is the time between two saves, --gin.train.save_minutes=10. Two
slices need a mesh for them: --slices=2 -- --gin_file=RECIPE --gin_file=gin/meshes/two_slices.gin.
"""

import re
import sys

import yaml

from speechgpt_jax import arguments, processes
from speechgpt_jax.arguments import (
    IllegalValue,
    Parser,
    Type,
    at_least,
    checked,
    nonempty,
    positive_int,
)
from speechgpt_jax.launch import gke
from speechgpt_jax.launch.command import add_arguments, chosen
from speechgpt_jax.launch.slices import check_mesh


def dns_name(longest: int, *, letter_first: bool = False, dots: bool = False) -> Type:
    """Type of names that are DNS labels, or with `dots` several of them."""
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    pattern = ("(?=[a-z])" if letter_first else "") + (rf"{label}(\.{label})*" if dots else label)
    signs = "digits, '-' and '.'" if dots else "digits and '-'"
    first = ", a letter first" if letter_first else ""

    def parse(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise IllegalValue(
                f"expected at most {longest} lower-case letters, {signs}{first}, got {text!r}"
            )
        return text

    return parse


# Kubernetes allows 63 characters, of which JobSet needs about 20 for suffixes of jobs and pods.
job_set_name = dns_name(40, letter_first=True)
namespace = dns_name(63)
# Named in a label, whose values have at most 63 characters.
queue = dns_name(63, dots=True)
service_account = dns_name(253, dots=True)
reservation = dns_name(63, letter_first=True)


def topology(text: str) -> str:
    """Type of slice shapes, such as 16x16."""
    return checked(text, gke.num_chips)


def variable(text: str) -> tuple[str, str]:
    """Type of environment variables: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[A-Za-z_]\w*", name)):
        raise IllegalValue(f"expected NAME=VALUE, got {text!r}")
    return name, value


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    command = chosen(args)
    command.check_outputs()
    if note := check_mesh(args.slices, command):
        print(note, file=sys.stderr)
    nodes = gke.Nodes(
        args.accelerator, args.topology, args.chips_per_host, args.spot, args.reservation
    )
    cluster = gke.Cluster(
        args.namespace, args.queue, args.service_account, args.host_network, dict(args.env)
    )
    manifest = gke.job_set(
        args.name,
        args.image,
        nodes,
        command,
        cluster,
        slices=args.slices,
        max_restarts=args.max_restarts,
    )
    command.check_values()
    text = yaml.safe_dump(manifest, sort_keys=False)
    if args.dry_run:
        print(text, end="")
        return 0
    apply = ["kubectl", "apply", "-f", "-"]
    return processes.run(apply, text, "--dry_run prints the manifest without it")


def parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--name", type=job_set_name, required=True, help="name of the JobSet")
    add("--image", type=nonempty, required=True, help="container image with this package installed")
    add("--accelerator", choices=gke.ACCELERATORS, required=True, help="GKE's name of the TPU type")
    add(
        "--topology",
        type=topology,
        required=True,
        help="chips along each dimension of a slice, such as 16x16",
    )
    add(
        "--chips_per_host",
        type=positive_int,
        help="8 for one host of 2x4 (default: 4, or 1 where the slice has one chip)",
    )
    add("--slices", type=positive_int, default=1, help="number of slices (default: 1)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="spot nodes: cheaper, may be preempted")
    kind.add_argument("--reservation", type=reservation, help="nodes of this reservation")
    add("--namespace", type=namespace, help="default: that of kubectl's context")
    add("--queue", type=queue, help="local queue of Kueue")
    add(
        "--service_account", type=service_account, help="Kubernetes account that may use the bucket"
    )
    add("--host_network", action="store_true", help="use the nodes' network")
    add(
        "--env",
        type=variable,
        action="append",
        default=[],
        help="NAME=VALUE: an environment variable of the pods; may be repeated",
    )
    add(
        "--max_restarts",
        type=at_least(0),
        default=5,
        help="number of restarts after crashes (default: 5)",
    )
    add("--dry_run", action="store_true", help="only print the manifest")
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    arguments.run(main)
