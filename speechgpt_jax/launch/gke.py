"""The JobSet that trains or answers on TPU slices of a GKE cluster."""

import dataclasses
import math
import re
from collections.abc import Mapping

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import GRACE_SECONDS, Command

# Seconds between GKE's notice and the loss of a spot node.
SPOT_GRACE_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A TPU type of GKE.

    Attributes:
      topologies: those that it offers; of three dimensions, those of fewer than 64 chips.
      hosts_of_8: topologies that also fit on one host of eight chips.
      most_chips: of a slice of three multiples of 4; 0 for types of two dimensions.
    """

    topologies: tuple[str, ...]
    hosts_of_8: tuple[str, ...] = ()
    most_chips: int = 0


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
ACCELERATORS = {
    "tpu-v4-podslice": Accelerator(_SOLID, most_chips=4096),
    "tpu-v5-lite-podslice": Accelerator(_FLAT, ("2x4",)),
    # The machine type ct5p-hightpu-1t has a single chip.
    "tpu-v5p-slice": Accelerator(("1x1x1", *_SOLID), most_chips=6144),
    "tpu-v6e-slice": Accelerator(_FLAT, ("2x4",)),
    "tpu7x": Accelerator(_SOLID, most_chips=9216),
}


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The nodes of one slice.

    Attributes:
      accelerator: a key of ACCELERATORS.
      topology: chips along each dimension of a slice, such as "16x16".
      chips_per_host: 1, 4 or 8; None: four, or one where the slice has a single chip.
      spot: cheaper, may be taken away with 15 seconds' notice.
      reservation: name of the reservation from which they come.

    Raises:
      UserError: there are no such slices.
    """

    accelerator: str
    topology: str
    chips_per_host: int | None = None
    spot: bool = False
    reservation: str | None = None

    def __post_init__(self):
        offered = ACCELERATORS[self.accelerator]
        if self.topology not in offered.topologies and not _is_solid(
            self.topology, offered.most_chips
        ):
            larger = ""
            if offered.most_chips:
                larger = (
                    ", or three multiples of 4 in ascending order such as 4x4x8, of at most"
                    f" {offered.most_chips} chips"
                )
            raise UserError(
                f"{self.accelerator} has no topology {self.topology}; expected one of"
                f" {', '.join(offered.topologies)}{larger}."
            )
        allowed = [min(num_chips(self.topology), 4)]
        if self.topology in offered.hosts_of_8:
            allowed.append(8)
        if self.chips_per_host not in (None, *allowed):
            raise UserError(
                f"chips_per_host {self.chips_per_host} must be {' or '.join(map(str, allowed))} for"
                f" {self.accelerator} of {self.topology}."
            )

    @property
    def chips(self) -> int:
        """Chips of a host."""
        return self.chips_per_host or min(num_chips(self.topology), 4)

    @property
    def hosts(self) -> int:
        """Hosts of a slice."""
        return num_chips(self.topology) // self.chips

    def selector(self) -> dict[str, str]:
        """Labels of the nodes."""
        labels = {"gke-tpu-accelerator": self.accelerator, "gke-tpu-topology": self.topology}
        labels |= {"gke-spot": "true"} if self.spot else {}
        labels |= {"reservation-name": self.reservation} if self.reservation else {}
        return {f"cloud.google.com/{name}": value for name, value in labels.items()}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How pods run in a cluster.

    Attributes:
      namespace: Kubernetes namespace; by default that of kubectl's context.
      queue: name of a local queue of Kueue, which starts the JobSet when there are nodes for it.
      service_account: account with which the pods read and write buckets.
      host_network: use the network of the node: a little faster between slices.
      environment: further variables.
    """

    namespace: str | None = None
    queue: str | None = None
    service_account: str | None = None
    host_network: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def num_chips(topology: str) -> int:
    """Number of chips of a slice: "16x16" -> 256, "2x2x4" -> 16."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise UserError(
            f"topology {topology!r} must be the chips along two or three dimensions, such as 16x16."
        )
    return math.prod(map(int, topology.split("x")))


def _is_solid(topology: str, most_chips: int) -> bool:
    """Whether the topology is three multiples of 4 in ascending order, within `most_chips`."""
    sides = [int(side) for side in topology.split("x")]
    fits = len(sides) == 3 and not any(side % 4 for side in sides)
    return fits and sides == sorted(sides) and num_chips(topology) <= most_chips


def job_set(
    name: str,
    image: str,
    nodes: Nodes,
    command: Command,
    cluster: Cluster = Cluster(),
    slices: int = 1,
    max_restarts: int = 5,
) -> dict:
    """Manifest of a JobSet, jobset.x-k8s.io/v1alpha2.

    Args:
      name: name of the JobSet, a DNS label.
      image: container image with this package installed.
      nodes: number of nodes of each slice.
      command: what runs on each host.
      cluster: how its pods run.
      slices: number of slices; GKE tells libtpu which slice a pod belongs to.
      max_restarts: restarts after crashes; those after preemptions don't count.
    """
    metadata: dict = {"name": name}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    if cluster.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": cluster.queue}
    # Each slice gets a node pool of its own.
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    metadata["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    job = _slice_job(image, nodes, cluster, command)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
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
            "replicatedJobs": [{"name": "slice", "replicas": slices, "template": {"spec": job}}],
        },
    }


def _slice_job(image, nodes, cluster, command) -> dict:
    """Job of one slice, with one pod per host; it fails as a whole if one pod fails."""
    # JobSet before 0.11 requires the status, though True is its default.
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "parallelism": nodes.hosts,
        "completions": nodes.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"operator": "In", "values": [command.stopped_exit_code]},
                },
                {"action": "FailJob", "onPodConditions": [disrupted]},
            ]
        },
        "template": {"spec": _pod(image, nodes, cluster, command)},
    }


def _pod(image, nodes, cluster, command) -> dict:
    """Pod of one host, which gets all of the host's chips."""
    container = {
        "name": command.name,
        "image": image,
        "command": command.words("python"),
        # The ports of libtpu and of JAX's coordinator.
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        # libtpu locks memory, for which a container's limit is too low.
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": nodes.chips}},
    }
    if cluster.environment:
        container["env"] = [{"name": n, "value": v} for n, v in cluster.environment.items()]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SPOT_GRACE_SECONDS if nodes.spot else GRACE_SECONDS,
        "nodeSelector": nodes.selector(),
        "containers": [container],
    }
    if nodes.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        pod["tolerations"] = [spot | {"effect": "NoSchedule"}]
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    if cluster.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod
