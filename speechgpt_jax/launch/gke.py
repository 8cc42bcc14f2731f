"""The JobSet that trains on TPU slices of a GKE cluster."""

import math
import re
from collections.abc import Sequence

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import GRACE_SECONDS, STOPPED_EXIT_CODE, train_command

CHIPS_PER_HOST = 4


def num_chips(topology: str) -> int:
    """Number of chips of a slice: "16x16" -> 256, "2x2x4" -> 16."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise UserError(
            f"topology {topology!r} must be the chips along two or three dimensions, such as 16x16."
        )
    return math.prod(map(int, topology.split("x")))


def job_set(
    name: str,
    image: str,
    accelerator: str,
    topology: str,
    train_arguments: Sequence[str],
    slices: int = 1,
    max_restarts: int = 5,
) -> dict:
    """Manifest of a JobSet, jobset.x-k8s.io/v1alpha2.

    Args:
      name: name of the JobSet, a DNS label.
      image: container image with this package installed.
      accelerator: GKE's name of the TPU type, such as "tpu-v5-lite-podslice".
      topology: chips along each dimension of a slice, such as "16x16".
      train_arguments: arguments of `speechgpt_jax.train`.
      slices: number of slices.
      max_restarts: restarts after crashes; those after preemptions don't count.

    Raises:
      UserError: the topology is malformed.
    """
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            # Each slice gets a node pool of its own.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": max_restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": slices,
                    "template": {"spec": _slice_job(image, accelerator, topology, train_arguments)},
                }
            ],
        },
    }


def _slice_job(image, accelerator, topology, train_arguments) -> dict:
    """Job of one slice, with one pod per host; it fails as a whole if one pod fails."""
    hosts = -(-num_chips(topology) // CHIPS_PER_HOST)
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
        "template": {"spec": _pod(image, accelerator, topology, train_arguments)},
    }


def _pod(image, accelerator, topology, train_arguments) -> dict:
    """Pod of one host, which gets all of the host's chips."""
    container = {
        "name": "train",
        "image": image,
        "command": train_command("python", train_arguments),
        # The ports of libtpu and of JAX's coordinator.
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        "resources": {"limits": {"google.com/tpu": min(num_chips(topology), CHIPS_PER_HOST)}},
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        },
        "containers": [container],
    }
