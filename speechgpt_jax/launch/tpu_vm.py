"""The gcloud commands that request a TPU VM pod, install this project on it and train there.

All return the command as a list of words. `location` holds the flags --zone and, unless it is
gcloud's default, --project.
"""

import shlex
from collections.abc import Sequence

QUEUED_RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
CHECKOUT = "~/speechgpt_jax"


def location(zone: str, project: str | None = None) -> list[str]:
    """Flags for the zone and project of a queued resource; by default gcloud's default project."""
    return [f"--zone={zone}", *([f"--project={project}"] if project else [])]


def create(
    name: str,
    location: Sequence[str],
    accelerator_type: str,
    runtime_version: str,
    slices: int = 1,
    spot: bool = False,
) -> list[str]:
    """Requests one or several slices as a queued resource."""
    nodes = [f"--node-id={name}"]
    if slices > 1:
        nodes = [f"--node-count={slices}", f"--node-prefix={name}"]
    flags = [
        f"--accelerator-type={accelerator_type}",
        f"--runtime-version={runtime_version}",
        *(["--spot"] if spot else []),
    ]
    return [*QUEUED_RESOURCES, "create", name, *location, *nodes, *flags]


def setup(name: str, location: Sequence[str], source: str) -> list[str]:
    """Clones the repository `source` on every host, or updates it, and installs it."""
    return on_all_hosts(
        name,
        location,
        f"test -d {CHECKOUT} || git clone -q {shlex.quote(source)} {CHECKOUT};"
        f" cd {CHECKOUT} && git pull -q &&"
        " python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[train,tpu]'",
    )


def train(name: str, location: Sequence[str], train_arguments: Sequence[str]) -> list[str]:
    """Starts `speechgpt_jax.train` on every host."""
    arguments = shlex.join(train_arguments)
    return on_all_hosts(
        name,
        location,
        f"cd {CHECKOUT} && .venv/bin/python -m speechgpt_jax.train --multihost {arguments}",
    )


def delete(name: str, location: Sequence[str]) -> list[str]:
    """Deletes the queued resource and its slices."""
    return [*QUEUED_RESOURCES, "delete", name, *location, "--force", "--quiet"]


def on_all_hosts(name: str, location: Sequence[str], command: str) -> list[str]:
    """Runs a shell command on all hosts at once."""
    # By default gcloud connects to 64 hosts at a time, which would wait for the others forever.
    every = ["--node=all", "--worker=all", "--batch-size=all", f"--command={command}"]
    return [*QUEUED_RESOURCES, "ssh", name, *location, *every]
