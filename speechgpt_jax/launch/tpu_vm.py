"""The gcloud commands that request TPU VMs, install this project on them and run it there.

All but `read_status` return the command as a list of words.
"""

import dataclasses
import re
import shlex
import signal

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import Command

QUEUED_RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
CHECKOUT = "~/speechgpt_jax"
UV = "~/.local/bin/uv"
# Kept beside the checkout's files: process id, exit code and output of the run on a host, the
# digest of its command, and a file that `stop` leaves.
PID, CODE, LOG, COMMAND, STOP = (
    f"train.{name}" for name in ("pid", "code", "log", "command", "stop")
)


_FLAT = (1, 4, 8, 16, 32, 64, 128, 256)
# Type of slices of two dimensions -> the numbers after its dash.
# https://cloud.google.com/tpu/docs/regions-zones
SIZES = {
    "v2": (8, 32, 128, 256, 512),
    "v3": (8, 32, 64, 128, 256, 512, 1024, 2048),
    "v5litepod": _FLAT,
    "v6e": _FLAT,
}
# Type of slices of three dimensions, numbered by cores, of which a chip has two -> largest number.
CORES = {"v4": 8192, "v5p": 12288}


@dataclasses.dataclass(frozen=True)
class Pod:
    """A queued resource: one or several TPU slices.

    Attributes:
      name, zone: name and zone of the queued resource.
      project: Google Cloud project; by default gcloud's default project.
    """

    name: str
    zone: str
    project: str | None = None

    def command(self, verb: str, *flags: str) -> list[str]:
        """`gcloud compute tpus queued-resources VERB NAME --zone=... FLAGS`."""
        return [*QUEUED_RESOURCES, verb, self.name, *self.location, *flags]

    @property
    def location(self) -> list[str]:
        """Flags for zone and project."""
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]


@dataclasses.dataclass(frozen=True)
class Request:
    """Request for TPU slices.

    Attributes:
      accelerator_type: such as "v5litepod-256".
      runtime_version: such as "v2-alpha-tpuv5-lite".
      slices: number of slices, joined by the data-centre network.
      spot: cheaper, may be preempted.
      reserved: taken from the project's reservation.
      service_account: account with which the hosts read and write buckets.
      network, subnetwork: networks of the hosts; by default the project's `default`.
      labels: such as "team=speech,run=stage1".

    Raises:
      UserError: there is no such TPU type, or it is on GKE only.
    """

    accelerator_type: str
    runtime_version: str
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    service_account: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    labels: str | None = None

    def __post_init__(self):
        if self.accelerator_type.startswith(("tpu7x", "v7x")):
            raise UserError(
                f"accelerator_type {self.accelerator_type} can't be had as a queued resource, only"
                " on GKE: use tools.launch_gke --accelerator=tpu7x."
            )
        kind, _, number = self.accelerator_type.partition("-")
        size = int(number) if re.fullmatch(r"[1-9]\d{0,5}", number) else 0
        is_solid = size in (8, 16, 32, 64) or (size > 0 and size % 128 == 0)
        if size not in SIZES.get(kind, ()) and not (is_solid and size <= CORES.get(kind, 0)):
            sizes = [f"{kind}-{'|'.join(map(str, SIZES[kind]))}" for kind in SIZES]
            sizes += [f"{kind}-8|16|32|64|multiples of 128 to {CORES[kind]}" for kind in CORES]
            near = [text for text in sizes if text.startswith(f"{kind}-")] or sizes
            raise UserError(
                f"there is no accelerator_type {self.accelerator_type}; expected {', '.join(near)}."
            )


@dataclasses.dataclass(frozen=True)
class HostRun:
    """State of the run on a host, as `status` prints it.

    Attributes:
      state: "run in progress", "run ended with N" or "no run".
      command: the digest of its command; None if there is no run.
      is_stopped: `stop` was called.
    """

    state: str
    command: str | None = None
    is_stopped: bool = False

    @property
    def is_in_progress(self) -> bool:
        return self.state == "run in progress"

    @property
    def code(self) -> int | None:
        """Exit code of a run that has ended."""
        return int(self.state.rpartition(" ")[2]) if "ended" in self.state else None


def create(pod: Pod, request: Request) -> list[str]:
    """Requests the slices."""
    nodes = [f"--node-id={pod.name}"]
    if request.slices > 1:
        nodes = [f"--node-count={request.slices}", f"--node-prefix={pod.name}"]
    named = ("service_account", "network", "subnetwork", "labels")
    given = {name: getattr(request, name) for name in named}
    return pod.command(
        "create",
        *nodes,
        f"--accelerator-type={request.accelerator_type}",
        f"--runtime-version={request.runtime_version}",
        *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value),
        *(["--spot"] if request.spot else []),
        *(["--reserved"] if request.reserved else []),
    )


def state(pod: Pod) -> list[str]:
    """Prints the state of the request: WAITING_FOR_RESOURCES, ACTIVE, ...; nothing if none is made.

    Unlike `describe`, `list` fails only if Google Cloud can't be asked.
    """
    chosen = [f"--filter=name~/{pod.name}$", "--format=value(state.state)"]
    return [*QUEUED_RESOURCES, "list", *pod.location, *chosen]


def delete(pod: Pod) -> list[str]:
    """Deletes the queued resource and its slices."""
    return pod.command("delete", "--force", "--quiet")


def setup(pod: Pod, source: str) -> list[str]:
    """Clones the repository `source` on every host, or updates it, and installs it.

    uv brings the Python, since the images' own is too old.
    """
    return on_all_hosts(
        pod,
        f"(test -d {CHECKOUT} || git clone -q {shlex.quote(source)} {CHECKOUT}) &&"
        f" cd {CHECKOUT} && git remote set-url origin {shlex.quote(source)} && git pull -q &&"
        f" (test -x {UV} || curl -LsSf https://astral.sh/uv/install.sh | sh) &&"
        f" {UV} venv -q --allow-existing --python=3.11 .venv &&"
        f" {UV} pip install -q -e '.[train,wandb,tpu]'",
    )


def train(pod: Pod, command: Command) -> list[str]:
    """Starts the command on every host, where it outlives the connection."""
    words = shlex.join(command.words(".venv/bin/python", joins=True))
    # The shell waits for the run also after SIGTERM, so that the exit code is always written.
    script = shlex.quote(f"trap : TERM; {words}; echo $? > {CODE}")
    return on_all_hosts(
        pod,
        f"cd {CHECKOUT} &&"
        f" if ! test -f {CODE} && kill -0 $(cat {PID}) 2> /dev/null;"
        " then echo 'a run is in progress'; exit 1; fi &&"
        f" rm -f {CODE} {STOP} && echo {command.digest} > {COMMAND} &&"
        f" {{ setsid nohup sh -c {script} > {LOG} 2>&1 < /dev/null & echo $! > {PID}; }}",
    )


def status(pod: Pod) -> list[str]:
    """Prints a line per host: "no run", or "run ended with 75, command 1a2b3c4d5e6f, stopped"."""
    return on_all_hosts(
        pod,
        f"cd {CHECKOUT} 2> /dev/null;"
        f' about=", command $(cat {COMMAND} 2> /dev/null)";'
        f' test ! -f {STOP} || about="$about, stopped";'
        f' if test -f {CODE}; then echo "run ended with $(cat {CODE})$about";'
        f' elif kill -0 $(cat {PID}) 2> /dev/null; then echo "run in progress$about";'
        " else echo no run; fi",
    )


def read_status(printed: str) -> list[HostRun]:
    """The lines of `status` among what gcloud prints."""
    found = re.findall(
        r"(run in progress|run ended with \d+), command (\w*)(, stopped)?|(no run)", printed
    )
    return [
        HostRun(no_run) if no_run else HostRun(state, command, bool(stopped))
        for state, command, stopped, no_run in found
    ]


def logs(pod: Pod, lines: int) -> list[str]:
    """Prints the last lines of the first host's output and those that follow."""
    first = ["--node=0", "--worker=0"]
    return pod.command("ssh", *first, f"--command=tail -n {lines} -F {CHECKOUT}/{LOG}")


def stop(pod: Pod) -> list[str]:
    """Lets the run finish its step, save a checkpoint and end, and `watch` end with it."""
    return on_all_hosts(pod, f"cd {CHECKOUT} && touch {STOP} && kill -s TERM -- -$(cat {PID})")


def kill(pod: Pod) -> list[str]:
    """Ends the run where it hasn't ended, without a checkpoint."""
    killed = f"kill -s KILL -- -$(cat {PID}); echo {128 + signal.SIGKILL} > {CODE}"
    return on_all_hosts(pod, f"cd {CHECKOUT} && if ! test -f {CODE}; then {killed}; fi")


def on_all_hosts(pod: Pod, command: str) -> list[str]:
    """Runs a shell command on all hosts at once."""
    # By default gcloud connects to 64 hosts at a time, which would wait for the others forever.
    every = ["--node=all", "--worker=all", "--batch-size=all", f"--command={command}"]
    return pod.command("ssh", *every)
