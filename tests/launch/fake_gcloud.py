"""A `gcloud` that plays two hosts in folders of this machine, and one preemption.

Its folder (FAKE_CLOUD) has `calls`, a line of JSON per call; `state`, of the queued resource; and
`hosts/0`, `hosts/1`, whose homes they are. Commands for the hosts are really run, by sh. A verb in
the file `failing` ends with 255, one in `hanging` doesn't end; with a file `refuse` requests fail.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
STATE, HOSTS = CLOUD / "state", CLOUD / "hosts"
# Plays uv: the environment's Python is a script that takes the flags of `train`.
UV = f"#!/bin/sh\nmkdir -p .venv/bin && cp {CLOUD}/python .venv/bin/python\n"


def main(words):
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    assert words[:3] == ["compute", "tpus", "queued-resources"], words
    verb, flags = words[3], dict(w[2:].partition("=")[::2] for w in words if w.startswith("--"))
    if verb in words_in("failing"):
        return 255
    if verb in words_in("hanging"):
        # Its child holds the output open, as gcloud's ssh does.
        subprocess.run(["sleep", "60"])
    if verb == "create":
        assert not STATE.exists(), "it exists"
        STATE.write_text("WAITING_FOR_RESOURCES")
    elif verb == "list":
        if STATE.exists():
            print(STATE.read_text())
            advance()
    elif verb == "delete":
        STATE.unlink()
    elif verb == "ssh":
        hosts = sorted(HOSTS.iterdir()) if flags["worker"] == "all" else [HOSTS / flags["worker"]]
        codes = [
            subprocess.run(
                ["sh", "-c", flags["command"]], cwd=host, env=os.environ | {"HOME": str(host)}
            ).returncode
            for host in hosts
        ]
        return max(codes)
    return 0


def words_in(name):
    return (CLOUD / name).read_text().split() if (CLOUD / name).exists() else []


def advance():
    """Changes after a look at the state."""
    if (CLOUD / "refuse").exists():
        STATE.write_text("FAILED")
    elif STATE.read_text() == "WAITING_FOR_RESOURCES":
        for host in "01":
            uv = HOSTS / host / ".local/bin/uv"
            uv.parent.mkdir(parents=True)
            uv.write_text(UV)
            uv.chmod(0o755)
        STATE.write_text("ACTIVE")
    elif (CLOUD / "preempt").exists() and list(HOSTS.glob("*/speechgpt_jax/train.pid")):
        (CLOUD / "preempt").unlink()
        for pid in HOSTS.glob("*/speechgpt_jax/train.pid"):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(HOSTS)
        HOSTS.mkdir()
        STATE.write_text("SUSPENDED")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
