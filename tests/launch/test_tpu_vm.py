"""The TPU VM launcher against a fake `gcloud` whose hosts are folders of this machine."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch import tpu_vm
from speechgpt_jax.launch.tpu_vm import Pod
from tools import launch_tpu_vm

pytestmark = pytest.mark.slow

POD = Pod("pod", "zone", "project")
WHERE = ["--name=pod", "--zone=zone", "--project=project"]
SLICES = ["--accelerator_type=v5litepod-8", "--runtime_version=image", "--spot"]

# Plays training: ends with the code in the file of its one argument; waits as long as that is
# missing, and ends with 75 at SIGTERM.
TRAIN = """#!/bin/sh
echo "$@"
trap 'exit 75' TERM
for argument; do last=$argument; done
while ! test -f "$last"; do sleep 0.02; done
exit $(cat "$last")
"""


class Cloud:
    def __init__(self, folder: pathlib.Path):
        self.folder, self.hosts = folder, folder / "hosts"
        self.code = folder / "code"

    def calls(self):
        return [json.loads(line)[3] for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    (tmp_path / "hosts").mkdir()
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    fake = pathlib.Path(__file__).parent / "fake_gcloud.py"
    gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake} "$@"\n')
    python = tmp_path / "python"
    python.write_text(TRAIN)
    for program in (gcloud, python):
        program.chmod(0o755)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / "source")]
    subprocess.run(["git", "init", "-q", tmp_path / "source"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "code"], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path))
    yield Cloud(tmp_path)
    (tmp_path / "code").write_text("0")  # Ends what still runs.


def run(step, *arguments):
    return launch_tpu_vm.main([step, *WHERE, *arguments])


def status(capfd):
    capfd.readouterr()
    assert run("status") == 0
    return tpu_vm.read_status(capfd.readouterr().out)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_step_by_step(cloud, capfd):
    assert run("create", *SLICES, "--service_account=me@p", "--labels=team=speech") == 0
    call = json.loads((cloud.folder / "calls").read_text())
    assert {"--spot", "--service-account=me@p", "--labels=team=speech", "--node-id=pod"} <= {*call}
    for _ in range(2):  # Asked twice, it is granted.
        subprocess.run(tpu_vm.state(POD), check=True)
    assert status(capfd) == ["no run"] * 2
    assert run("setup", f"--source={cloud.folder / 'source'}") == 0
    assert run("setup", f"--source={cloud.folder / 'source'}") == 0, "it can be repeated"

    # `train` returns while the run goes on; a second one is refused.
    assert run("train", "--", "--output_dir=a b", str(cloud.code)) == 0
    assert status(capfd) == ["run in progress"] * 2
    assert run("train", "--", str(cloud.code)) == 1
    log = cloud.hosts / "0" / "speechgpt_jax" / "train.log"
    wait_for(lambda: log.exists() and log.read_text())
    assert "-m speechgpt_jax.train --stopped_exit_code=75 --multihost --output_dir=a b" in (
        log.read_text()
    )
    assert run("stop") == 0
    wait_for(lambda: status(capfd) == ["run ended with 75"] * 2)

    cloud.code.write_text("0")
    assert run("train", "--", str(cloud.code)) == 0
    wait_for(lambda: status(capfd) == ["run ended with 0"] * 2)
    assert run("delete") == 0
    assert not (cloud.folder / "state").exists()


def watch(cloud, *arguments):
    source = f"--source={cloud.folder / 'source'}"
    return run("watch", *SLICES, source, "--seconds=0.2", *arguments, "--", str(cloud.code))


def test_watch_survives_a_preemption_and_ends_with_the_run(cloud, capfd):
    (cloud.folder / "preempt").touch()
    cloud.code.write_text("0")
    assert watch(cloud) == 0
    verbs = [call for call in cloud.calls() if call != "list"]
    assert [verb for verb in verbs if verb != "ssh"] == ["create", "delete", "create"]
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("pod: ")]
    assert lines == [
        *("pod: not requested", "pod: WAITING_FOR_RESOURCES", "pod: ACTIVE"),
        "pod: starting the run on 2 hosts",
        *("pod: SUSPENDED", "pod: not requested", "pod: WAITING_FOR_RESOURCES", "pod: ACTIVE"),
        *("pod: starting the run on 2 hosts", "pod: the run has finished"),
    ]


def test_a_crash_counts_once_while_other_hosts_still_run(cloud):
    """Each host reads its exit code from a file of its own."""
    source = f"--source={cloud.folder / 'source'}"
    codes = [cloud.hosts / host / "speechgpt_jax" / "code" for host in "01"]

    def crash_one_host():
        wait_for(lambda: all((code.parent / "train.pid").exists() for code in codes))
        codes[0].write_text("1")
        time.sleep(1)  # Some looks of `watch`.
        codes[0].write_text("0")
        codes[1].write_text("0")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        crash = pool.submit(crash_one_host)
        flags = ["--seconds=0.1", "--max_restarts=1"]
        assert run("watch", *SLICES, source, *flags, "--", "code") == 0
        crash.result()


def test_watch_gives_up_after_too_many_crashes(cloud):
    cloud.code.write_text("1")
    with pytest.raises(UserError, match=r"crashed 2 times, the last time with exit codes \[1\]"):
        watch(cloud, "--max_restarts=1")
