"""Trains on TPU slices of a GKE cluster, by a JobSet like those of XPK.

    python -m tools.launch_gke --name=stage1 --image=REGISTRY/speechgpt_jax \\
        --accelerator=tpu-v5-lite-podslice --topology=16x16 --slices=1 -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1

--dry_run prints the manifest instead of applying it. The cluster needs the JobSet controller. When
a node is preempted all pods save a checkpoint, and the JobSet restarts all of them; only crashes
count towards --max_restarts.
"""

import re

import yaml

from speechgpt_jax import arguments
from speechgpt_jax.arguments import (
    IllegalValue,
    Parser,
    at_least,
    checked,
    nonempty,
    positive_int,
)
from speechgpt_jax.launch import gke


def dns_label(text: str) -> str:
    """Type of Kubernetes names."""
    # Kubernetes allows 63 characters, of which JobSet needs about 20 for suffixes of jobs and pods.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise IllegalValue(
            f"expected at most 40 lower-case letters, digits and '-', a letter first, got {text!r}"
        )
    return text


def topology(text: str) -> str:
    """Type of slice shapes, such as 16x16."""
    return checked(text, gke.num_chips)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    manifest = gke.job_set(
        args.name,
        args.image,
        args.accelerator,
        args.topology,
        args.train_arguments,
        slices=args.slices,
        max_restarts=args.max_restarts,
    )
    text = yaml.safe_dump(manifest, sort_keys=False)
    if args.dry_run:
        print(text, end="")
        return 0
    apply = ["kubectl", "apply", "-f", "-"]
    return arguments.run_program(apply, input=text)


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--name", type=dns_label, required=True, help="name of the JobSet")
    parser.add_argument(
        "--image", type=nonempty, required=True, help="container image with this package installed"
    )
    parser.add_argument(
        "--accelerator",
        type=dns_label,
        required=True,
        help="GKE's name of the TPU type, such as tpu-v5-lite-podslice",
    )
    parser.add_argument(
        "--topology",
        type=topology,
        required=True,
        help="chips along each dimension of a slice, such as 16x16",
    )
    parser.add_argument(
        "--slices", type=positive_int, default=1, help="number of slices (default: 1)"
    )
    parser.add_argument(
        "--max_restarts",
        type=at_least(0),
        default=5,
        help="number of restarts after crashes (default: 5)",
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the manifest")
    parser.add_argument("train_arguments", nargs="+", help="arguments of train, after --")
    return parser


if __name__ == "__main__":
    arguments.run(main)
