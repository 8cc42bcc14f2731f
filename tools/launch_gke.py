"""Trains on TPU slices of a GKE cluster: one JobSet, as XPK makes them too.

    python -m tools.launch_gke --name=stage1 --image=REGISTRY/speechgpt_jax \\
        --accelerator=tpu-v5-lite-podslice --topology=16x16 --slices=1 -- \\
        --gin_file=gin/runs/llama_7b_stage1.gin --output_dir=gs://BUCKET/stage1

--dry_run prints the manifest instead of applying it. The cluster needs JobSet; GKE tells each
pod who the others are. When a node is preempted all pods save, and the JobSet starts all of them
again to go on; only crashes count towards --max_restarts.
"""

import argparse
import math
import subprocess
import sys

import yaml

from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.launch.command import GRACE_SECONDS, STOPPED_EXIT_CODE, train_command

CHIPS_PER_HOST = 4


def num_chips(topology: str) -> int:
    """Chips of a slice: "16x16" -> 256, "2x2x4" -> 16."""
    try:
        return math.prod(int(size) for size in topology.split("x"))
    except ValueError:
        raise UserError(f"topology {topology!r}: give chips a dimension, such as 16x16.") from None


def manifest(args: argparse.Namespace) -> dict:
    """The JobSet, jobset.x-k8s.io/v1alpha2."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            # One slice a node pool, and no node pool for two.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": args.slices, "template": {"spec": job(args)}}
            ],
        },
    }


def job(args: argparse.Namespace) -> dict:
    """One slice: a pod a host, all of them or none."""
    hosts = -(-num_chips(args.topology) // CHIPS_PER_HOST)
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"operator": "In", "values": [STOPPED_EXIT_CODE]},
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]},
            ]
        },
        "template": {"spec": pod(args)},
    }


def pod(args: argparse.Namespace) -> dict:
    container = {
        "name": "train",
        "image": args.image,
        "command": train_command("python", args.train_arguments),
        # libtpu's own, and JAX's coordinator.
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        "resources": {"limits": {"google.com/tpu": min(num_chips(args.topology), CHIPS_PER_HOST)}},
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": args.accelerator,
            "cloud.google.com/gke-tpu-topology": args.topology,
        },
        "containers": [container],
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="with this repository installed")
    parser.add_argument("--accelerator", required=True, help="such as tpu-v5-lite-podslice")
    parser.add_argument("--topology", required=True, help="chips a dimension, such as 16x16")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--max_restarts", type=int, default=5, help="after crashes")
    parser.add_argument("--dry_run", action="store_true", help="print the manifest alone")
    parser.add_argument("train_arguments", nargs="+", help="after --: those of train")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    text = yaml.safe_dump(manifest(args), sort_keys=False)
    if args.dry_run:
        print(text, end="")
        return 0
    apply = ["kubectl", "apply", "-f", "-"]
    return subprocess.run(apply, input=text, text=True, check=False).returncode


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
