"""Several processes on this machine, connected by gloo, train, stop and resume together."""

import concurrent.futures
import dataclasses
import os
import random
import re
import shutil
import signal
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import CONFIG, RandomBatches, random_batch

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.evaluation.while_training import AnsweredTasks
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.training import hosts, loop, progress
from speechgpt_jax.training.inputs import HeldOut
from speechgpt_jax.training.watchdog import HUNG_EXIT_CODE, Watchdog
from tests.processes import CONTEXT, free_port

STEPS = 12
DEVICES = 4  # Summed over all processes.


@dataclasses.dataclass
class Signal:
    """A signal that a process sends itself `seconds` after it asks for the batch of `step`."""

    number: signal.Signals
    step: int
    seconds: float = 0.0

    def send(self):
        if self.seconds:
            threading.Timer(self.seconds, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)
            time.sleep(2)  # JAX looks for SIGTERM once a second, in another thread.


class Rows(RandomBatches):
    """This process's rows of the global batches."""

    def __init__(self, mesh: MeshConfig, stop: Signal | None):
        super().__init__(rows=8, length=12)
        self.share = sharding.process_share(sharding.create_mesh(mesh))
        self.stop = stop

    def __next__(self):
        batch = super().__next__()
        if self.stop and self.count >= self.stop.step:
            self.stop.send()
            self.stop = None
        return self.own(batch)

    def own(self, batch):
        index, shares = self.share
        return {key: np.split(rows, shares)[index] for key, rows in batch.items()}


def train_in_process(
    num_processes, process_id, port, folder, mesh, steps, stop, heartbeat=None, **kwargs
):
    """The body of one process: train.main with a small model; output goes to log_<process_id>."""
    write_log(folder, process_id)
    hosts.HEARTBEAT_SECONDS = heartbeat or hosts.HEARTBEAT_SECONDS
    jax.config.update("jax_num_cpu_devices", DEVICES // num_processes)
    others = (f"localhost:{port}", num_processes, process_id) if num_processes > 1 else ()
    with hosts.connected(False, *others), one_line_errors():
        batches = Rows(mesh, stop)
        held_out = HeldOut("test", [batches.own(random_batch([10] * 8, seed)) for seed in (70, 71)])
        run(folder, mesh, steps, batches, held_out=[held_out], evaluate_every=4, **kwargs)


def run(folder, mesh, steps, batches, **kwargs):
    from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
    from speechgpt_jax.training.lm import train
    from speechgpt_jax.training.optimizer import AdamW

    if "answered" in kwargs:
        import tasks  # noqa: F401 (registers them)
    tokenizer = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    train(
        model=dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, num_kv_heads=4),
        tokenizer=tokenizer,
        batches=batches,
        optimizer=AdamW(1e-2, schedule="constant", warmup=0),
        mesh=mesh,
        steps=steps,
        output_dir=str(folder),
        log_every=1,
        **{"save_every": 2} | kwargs,
    )


def start(folder, num_processes, *, mesh=MeshConfig(), steps=8, stop=None, **kwargs):  # noqa: B008 (frozen)
    """Starts all processes of a run, waits for them and returns their exit codes.

    The last process sends itself `stop`; after a SIGSTOP it is not waited for.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    processes = [
        CONTEXT.Process(
            target=train_in_process,
            args=(num_processes, i, port, folder, mesh, steps),
            kwargs={"stop": stop if i == num_processes - 1 else None, **kwargs},
        )
        for i in range(num_processes)
    ]
    for process in processes:
        process.start()
    never_ends = stop is not None and stop.number == signal.SIGSTOP
    for process in processes[:-1] if never_ends else processes:
        process.join(300)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def write_log(folder, process_id):
    """Sends the output of this process to log_<process_id>."""
    log = os.open(folder / f"log_{process_id}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_platforms", "cpu")


def fill_the_memory(folder, port):
    write_log(folder, 0)
    with hosts.connected(False, f"localhost:{port}", 1, 0):
        jnp.zeros(2**52, jnp.int8)


def losses(folder):
    return values(folder, "loss")


def values(folder, name):
    """{step: value} of a metric."""
    return {line["step"]: line[name] for line in progress.read_metrics(folder) if name in line}


def log(folder, process=0):
    return (folder / f"log_{process}").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """{step: loss} of a run of one process that is never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder, 1, steps=STEPS, save_every=STEPS) == [0], log(folder)
    return losses(folder)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_losses_of_an_undisturbed_run(undisturbed, tmp_path):
    moments = random.Random(0)
    for step in (2, 7):
        stop = Signal(signal.SIGKILL, step, seconds=moments.uniform(0.01, 0.2))
        assert start(tmp_path, 1, steps=10**6, stop=stop) == [-signal.SIGKILL], log(tmp_path)
    last = max(step for step in losses(tmp_path))
    assert start(tmp_path, 1, steps=max(last, STEPS)) == [0], log(tmp_path)
    assert "Resuming from step" in log(tmp_path)
    curve = losses(tmp_path)
    assert [curve[step] for step in undisturbed] == list(undisturbed.values())


@pytest.mark.slow
def test_two_processes_a_crash_a_preemption_and_four_processes(undisturbed, tmp_path):
    folder = tmp_path / "run"

    # One process is killed: the other one prints a message and stops.
    codes = start(folder, 2, stop=Signal(signal.SIGKILL, step=6))
    assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL, log(folder)
    assert re.search("another process is gone|another task died", log(folder))
    first = losses(folder)
    assert set(first) >= {1, 2, 3, 4}

    # The same command resumes exactly. One process gets SIGTERM before its first step: both save
    # the same step and exit.
    assert start(folder, 2, stop=Signal(signal.SIGTERM, step=1)) == [0, 0], log(folder)
    assert re.search(r"Resuming from step [24] ", log(folder))
    assert "SIGTERM: step" in log(folder)
    assert "SIGTERM: step" not in log(folder, 1), "only the first process prints it"
    second = losses(folder)
    assert {step: second[step] for step in first if step in second} == {
        step: first[step] for step in first if step in second
    }
    saved = int(checkpoints.latest(folder).name)
    assert max(second) == saved

    # Four processes resume the run of two, with the losses of one process that resumes it: the
    # input starts from the beginning for both. Pairs of the four processes read the same rows.
    # Each answers its share of the examples; one of them has two.
    answered = AnsweredTasks(["demo_text_to_text"], num_examples=5, devices=1)
    shutil.copytree(folder, tmp_path / "one")
    mesh = MeshConfig(data=1, fsdp=2, context=2)
    more = {"steps": saved + 2, "answered": answered}
    assert start(folder, 4, mesh=mesh, **more) == [0] * 4, log(folder)
    assert f"Resuming from step {saved} " in log(folder)
    assert start(tmp_path / "one", 1, **more) == [0], log(tmp_path / "one")
    third = losses(folder)
    assert list(third) == list(range(1, saved + 3))
    np.testing.assert_allclose(
        list(third.values())[:saved], list(undisturbed.values())[:saved], rtol=1e-5
    )
    expected = list(losses(tmp_path / "one").values())
    np.testing.assert_allclose(list(third.values()), expected, rtol=1e-5)
    held_out = values(folder, "test/loss")
    assert list(held_out)[-1] == saved + 2
    for step, loss in values(tmp_path / "one", "test/loss").items():
        np.testing.assert_allclose(held_out[step], loss, rtol=1e-6)
    answers = [values(x, "test/demo_text_to_text/form_error") for x in (folder, tmp_path / "one")]
    assert answers[0] == answers[1] and list(answers[0])[-1] == saved + 2


@pytest.mark.slow
def test_a_stopped_process_ends_the_others_with_traces(tmp_path):
    """By the watchdog, or if its limit is longer, as by default, by the missing heartbeat."""
    stop = Signal(signal.SIGSTOP, step=6)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        default = {"steps": 10**6, "stop": stop, "heartbeat": 6}
        aborted = pool.submit(start, tmp_path / "default", 2, **default)
        watchdog = Watchdog(factor=3, at_least=8)
        codes = start(tmp_path, 2, steps=10**6, stop=stop, watchdog=watchdog)
    assert aborted.result() == [-signal.SIGABRT, -signal.SIGKILL], log(tmp_path / "default")
    printed = log(tmp_path / "default")
    assert "The following tasks are unhealthy (stopped sending heartbeats)" in printed
    assert re.search("(?s)Fatal Python error: Aborted.*loop.py.* in fit", printed)
    assert not (tmp_path / "default" / "hung").exists()

    assert codes[-1] == -signal.SIGKILL, "it never ends by itself"
    # The coordinator may end the others before their own watchdogs do.
    assert HUNG_EXIT_CODE in codes and 0 not in codes, codes
    hung = sorted(path.name for path in (tmp_path / "hung").iterdir())
    assert hung and "process_1.txt" not in hung
    traces = (tmp_path / "hung" / hung[0]).read_text()
    assert re.match(r"step after step [56] takes (8|9|1\d) s, usually [\d.]+ s", traces)
    assert "Current thread" in traces and "loop.py" in traces
    assert f"Error: process {hung[0][8]} of 2 hangs" in log(tmp_path, hung[0][8])


@pytest.mark.slow
def test_a_full_memory_is_not_taken_for_a_lost_process(tmp_path):
    process = CONTEXT.Process(target=fill_the_memory, args=(tmp_path, free_port()))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert "Error: the memory of a device is full; take a smaller batch" in log(tmp_path)
    assert "another process" not in log(tmp_path)


def answer_shares(folder, process_id, port):
    """One of two processes; the second takes longer than the others of a training run wait."""
    write_log(folder, process_id)
    hosts.SHUTDOWN_SECONDS = 1
    with hosts.connected(False, f"localhost:{port}", 2, process_id, independent=True):
        # Checkpoints are saved by the clock of the first process, here the faster one.
        assert loop.SaveClock(1e-9 if process_id == 0 else 1000, 1).is_due(1)
        assert not loop.SaveClock(1000 if process_id == 0 else 1e-9, 1).is_due(1)
        time.sleep(2.5 * process_id)


def stop_alone(port):
    with hosts.connected(False, f"localhost:{port}", 1, 0, independent=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


@pytest.mark.slow
def test_independent_processes_wait_for_the_slowest_and_end_at_sigterm(tmp_path):
    port = free_port()
    started = [CONTEXT.Process(target=answer_shares, args=(tmp_path, i, port)) for i in range(2)]
    started.append(CONTEXT.Process(target=stop_alone, args=(free_port(),)))
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, -signal.SIGTERM], log(tmp_path)


def connect(num_processes, process_id, port):
    """The start of train.main in one of several processes."""
    with one_line_errors(), hosts.connected(False, f"localhost:{port}", num_processes, process_id):
        pass


def test_nobody_listens_at_the_address_of_process_0(monkeypatch):
    monkeypatch.setattr(hosts, "CONNECT_SECONDS", 0)
    with pytest.raises(SystemExit, match=r"process 0 of 2 doesn't listen at --coordinator_address"):
        connect(2, 1, free_port())


def test_the_port_of_process_0_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(SystemExit, match=r"process 0 can't listen at port .* give a free port"):
            connect(2, 0, taken.getsockname()[1])


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":80", "a:b", "a:0", "a:70000"])
def test_addresses_that_are_none(address):
    with (
        pytest.raises(ValueError, match="must be HOST:PORT of process 0, got"),
        hosts.connected(False, address, 2, 1),
    ):
        pass


def test_flags_belong_together():
    with (
        pytest.raises(ValueError, match="num_processes, process_id must be given too"),
        hosts.connected(coordinator_address="localhost:1"),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, 1),  # The shell that calls srun.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "a[1-4]"}, 8),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "a-0,a-1,a-2,a-3", "TPU_WORKER_ID": "0"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "a-0,a-1", "MEGASCALE_NUM_SLICES": "2"}, 4),
    ],
)
def test_number_of_scheduled_processes(environment, processes, monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.scheduled_processes() == processes
