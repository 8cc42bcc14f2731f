"""The TPU VM launcher against a fake `gcloud` whose hosts are folders of this machine."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from launch_flags import IN_IMAGE as RUN

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

    def has_started(self):
        """Whether the run writes output on both hosts."""
        logs = [pid.parent / "train.log" for pid in self.pids()]
        return all(log.exists() and log.read_text() for log in logs)

    def pids(self):
        return [self.hosts / host / "speechgpt_jax" / "train.pid" for host in "01"]

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
    return [run.state for run in tpu_vm.read_status(capfd.readouterr().out)]


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

    # `train` returns while the run is in progress; a second one is refused.
    assert run("train", "--", *RUN[:1], "--output_dir=a b", str(cloud.code)) == 0
    assert status(capfd) == ["run in progress"] * 2
    assert run("train", "--", *RUN, str(cloud.code)) == 1
    log = cloud.hosts / "0" / "speechgpt_jax" / "train.log"
    wait_for(lambda: log.exists() and log.read_text())
    assert "-m speechgpt_jax.train --stopped_exit_code=75 --multihost" in log.read_text()
    assert " --output_dir=a b " in log.read_text()
    assert run("stop") == 0
    wait_for(lambda: status(capfd) == ["run ended with 75"] * 2)

    cloud.code.write_text("0")
    assert run("train", "--", *RUN, str(cloud.code)) == 0
    wait_for(lambda: status(capfd) == ["run ended with 0"] * 2)
    assert run("delete") == 0
    assert not (cloud.folder / "state").exists()


def watch(cloud, *arguments):
    source = f"--source={cloud.folder / 'source'}"
    return run("watch", *SLICES, source, "--seconds=0.2", *arguments, "--", *RUN, str(cloud.code))


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
        "pod: gcloud's status failed (1 of 20 times in a row)",
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
        assert run("watch", *SLICES, source, *flags, "--", *RUN, "code") == 0
        crash.result()


def test_watch_gives_up_after_too_many_crashes(cloud):
    cloud.code.write_text("1")
    with pytest.raises(UserError, match=r"crashed 2 times, the last time with exit codes \[1\]"):
        watch(cloud, "--max_restarts=1")


def test_watch_starts_a_new_command_where_an_earlier_one_has_ended(cloud, capfd):
    cloud.code.write_text("0")
    assert watch(cloud) == 0
    source = f"--source={cloud.folder / 'source'}"
    stage2 = ["--seconds=0.2", "--", *RUN[:1], "--output_dir=stage2", str(cloud.code)]
    assert run("watch", *SLICES, source, *stage2) == 0
    log = (cloud.hosts / "0" / "speechgpt_jax" / "train.log").read_text()
    assert "--output_dir=stage2" in log
    assert capfd.readouterr().out.count("pod: starting the run on 2 hosts") == 2

    # Watched again, what has finished isn't started again.
    assert run("watch", *SLICES, source, *stage2) == 0
    assert "starting" not in capfd.readouterr().out


@contextlib.contextmanager
def watching(cloud, *arguments, codes=()):
    """`watch` in a thread. The runs end at last, also where a test fails."""
    source = f"--source={cloud.folder / 'source'}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(run, "watch", *SLICES, source, *arguments)
        finally:
            for code in codes or [cloud.code]:
                code.write_text("0")


def test_watch_leaves_the_run_of_another_command_alone(cloud):
    with watching(cloud, "--seconds=0.2", "--", *RUN, str(cloud.code)) as first:
        wait_for(cloud.has_started)
        with pytest.raises(UserError, match="a run with other arguments is in progress; wait"):
            run(
                *("watch", *SLICES, f"--source={cloud.folder / 'source'}", "--seconds=0.2"),
                *("--", *RUN[:1], "--output_dir=stage2", str(cloud.code)),
            )
        cloud.code.write_text("0")
        assert first.result() == 0


def test_a_host_that_never_ends_is_ended(cloud, capfd):
    """Each host reads its exit code from a file of its own; the second is stopped before."""
    codes = [pid.parent / "code" for pid in cloud.pids()]
    flags = ["--seconds=0.1", "--straggler_minutes=0.02"]
    with watching(cloud, *flags, "--", *RUN, "code", codes=codes) as watched:
        wait_for(cloud.has_started)
        hanging = cloud.pids()[1].read_text()
        os.killpg(int(hanging), signal.SIGSTOP)
        codes[0].write_text("76")
        wait_for(lambda: cloud.pids()[1].read_text() not in ("", hanging))
        for code in codes:
            code.write_text("0")
        assert watched.result() == 0
    assert re.search(
        r"pod: the run has ended on 1 of 2 hosts \(exit codes \[76\]\) and not on the others within"
        r" \d+ seconds: ending it there\npod: starting the run on 2 hosts\n",
        capfd.readouterr().out,
    )


def test_stop_ends_watch_and_watch_resumes_later(cloud):
    with watching(cloud, "--seconds=0.2", "--", *RUN, str(cloud.code)) as watched:
        wait_for(cloud.has_started)
        assert run("stop") == 0
        with pytest.raises(UserError, match="the run was stopped by `launch_tpu_vm stop`"):
            watched.result()
    assert watch(cloud) == 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("list", "gcloud's list failed, 3 of 3 times in a row"),
        ("create", "gcloud's create ended with 255, 3 of 3 times"),
        ("ssh", "gcloud's status failed, 3 of 3 times"),
    ],
)
def test_watch_ends_when_gcloud_fails_again_and_again(step, message, cloud, capfd):
    (cloud.folder / "failing").write_text(step)
    with pytest.raises(UserError, match=message):
        watch(cloud, "--max_failures=3")
    out = capfd.readouterr().out
    assert "(1 of 3 times in a row)" in out and "(3 of 3 times in a row)" in out


def test_watch_survives_a_few_failures(cloud, capfd):
    (cloud.folder / "failing").write_text("list")
    cloud.code.write_text("0")
    with watching(cloud, "--seconds=0.2", "--", *RUN, str(cloud.code)) as watched:
        calls = cloud.folder / "calls"
        wait_for(lambda: calls.exists() and len(cloud.calls()) > 1)
        (cloud.folder / "failing").unlink()
        assert watched.result() == 0
    assert "pod: gcloud's list failed (1 of 20 times in a row)" in capfd.readouterr().out


def test_watch_gives_up_a_request_that_fails_each_time(cloud):
    (cloud.folder / "refuse").touch()
    with pytest.raises(UserError, match="the request ended as FAILED, 3 of 3 times in a row"):
        watch(cloud, "--max_failures=3")
    assert cloud.calls().count("create") == 3


def test_a_gcloud_that_hangs_has_failed(cloud, capfd):
    (cloud.folder / "hanging").write_text("list")
    with pytest.raises(UserError, match="gcloud's list failed, 2 of 2 times"):
        watch(cloud, "--max_failures=2", "--call_minutes=0.02")
    assert "gcloud did not end within 1.2 seconds." in capfd.readouterr().err
