"""The main in a process of its own: a gin file, SLURM's signal, what it writes, mistakes."""

import json
import os
import signal
import struct
import subprocess
import time

import pytest
from wandb.proto import wandb_internal_pb2

from speechgpt_jax import checkpoints
from speechgpt_jax.launch.command import Command
from speechgpt_jax.launch.slurm import batch_script
from speechgpt_jax.shipped import SHIPPED_MODEL
from speechgpt_jax.training.progress import read_metrics
from speechgpt_jax.training.watchdog import HUNG_EXIT_CODE
from tests import processes

pytestmark = pytest.mark.slow

GIN = """
from __gin__ import dynamic_registration
import toy

from speechgpt_jax import tokenizer
from speechgpt_jax.models import llama
from speechgpt_jax.training import lm
from speechgpt_jax.training import optimizer

include 'gin/models/tiny.gin'

llama.LlamaConfig.hidden_size = 32
llama.LlamaConfig.num_layers = 1
tokenizer.Tokenizer.from_pretrained.folder = 'speechgpt_jax/assets/tokenizer'
lm.train.model = @llama.LlamaConfig()
lm.train.tokenizer = @tokenizer.Tokenizer.from_pretrained()
lm.train.optimizer = @optimizer.AdamW()
lm.train.batches = @toy.RandomBatches()
lm.train.steps = 1_000_000
lm.train.log_every = 1
optimizer.AdamW.learning_rate = 1e-3
"""


class Main:
    """The main with some arguments in a process of its own."""

    def __init__(self, folder, *arguments):
        self._output = folder
        self.process = processes.start(
            processes.run_module,
            "speechgpt_jax.train",
            f"--gin_file={folder}/run.gin",
            f"--output_dir={folder}/run",
            *arguments,
            output=folder,
            PYTHONPATH="tests/training",
            WANDB_MODE="offline",
        )

    def printed(self, stream="stdout"):
        return (self._output / stream).read_text()

    def result(self):
        """Exit code, output and errors of the whole run."""
        self.process.join()
        return self.process.exitcode, self.printed(), self.printed("stderr")


@pytest.fixture
def start(tmp_path):
    """Starts the main with some arguments; processes still running after the test are killed."""
    (tmp_path / "run.gin").write_text(GIN)
    started = []

    def start(*arguments):
        started.append(Main(tmp_path, *arguments))
        return started[-1]

    yield start
    for main in started:
        main.process.kill()
        main.process.join()


# Plays srun: leaves its words in a file, and ends with the code in another one.
SRUN = """#!/bin/sh
printf '%s\\n' "$@" > words.part && mv words.part words
while ! test -s code; do sleep 0.02; done
exit $(cat code)
"""
SCONTROL = '#!/bin/sh\necho "scontrol $@"\n'


def start_job(folder, *arguments):
    """Starts the batch script of `launch_slurm`; its srun waits for the file `code`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    script = batch_script("job", 1, 1, 1, 1, Command(arguments))
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=variables, stdout=subprocess.PIPE, text=True
    )
    wait_for(job, (folder / "words").exists)
    return job, (folder / "words").read_text().splitlines()


def wait_for(process, condition):
    while not condition():
        assert (
            process.poll() if isinstance(process, subprocess.Popen) else process.exitcode
        ) is None
        time.sleep(0.05)


def test_sigterm_saves_and_the_same_command_resumes(start, tmp_path):
    """SLURM sends SIGTERM to the processes of srun, and is asked to start the job again."""
    job, words = start_job(tmp_path, "--wandb=speech", f"--prometheus_file={tmp_path}/run.prom")
    assert words[:4] == ["--kill-on-bad-exit=1", ".venv/bin/python", "-m", "speechgpt_jax.train"]
    main = start(*words[4:])
    wait_for(main.process, lambda: "step 1/" in main.printed())
    done = main.printed().count("step ")
    os.kill(main.process.pid, signal.SIGTERM)
    code, out, err = main.result()
    assert code == 75, err
    assert out.startswith("step 1/")
    assert "The same command resumes from there." in out
    step = int(checkpoints.latest(tmp_path / "run").name)
    assert step < done + 1000, "it ends at once, not after all of its million steps"
    (tmp_path / "code").write_text(str(code))
    assert job.communicate()[0] == "scontrol requeue 7\n"
    assert job.returncode == 75

    # What can't be written is reported.
    (tmp_path / "run" / "loss.png").mkdir()
    (tmp_path / "run.prom").unlink()
    code, out, err = start(f"--gin.train.steps={step + 2}", *words[4:]).result()
    assert code == 0, err
    assert f"{tmp_path}/run/loss.png can't be written: it is a folder." in err
    assert out.startswith(f"Resuming from step {step} ")
    assert "Next stage:  --gin.train.start_from=" in out
    assert int(checkpoints.latest(tmp_path / "run").name) == step + 2
    assert f"lm.train.steps = {step + 2}" in (tmp_path / "run" / "config.gin").read_text()
    assert f'speechgpt_step{{run="run"}} {step + 2}' in (tmp_path / "run.prom").read_text()
    check_wandb(tmp_path / "run", step)


def test_a_run_that_hangs_while_it_reads_the_data_leaves_traces(start, tmp_path):
    with (tmp_path / "run.gin").open("a") as file:
        file.write(
            "from speechgpt_jax.training import watchdog\n"
            "lm.train.watchdog = @watchdog.Watchdog()\n"
            "watchdog.Watchdog.first = 2\n"
            "lm.train.batches = @toy.hanging_batches()\n"
        )
    code, out, err = start().result()
    assert (code, out) == (HUNG_EXIT_CODE, "")
    assert "Error: process 0 of 1 hangs: start after step 0 takes " in err
    traces = (tmp_path / "run" / "hung" / "process_0.txt").read_text()
    assert "in hanging_batches" in traces


def check_wandb(folder, stopped):
    """Both starts are one run of Weights & Biases, with all metrics."""
    found = [
        list(wandb_records(file)) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    ]
    lines = read_metrics(folder)
    for records, steps in zip(found, (range(1, stopped + 1), range(stopped + 1, stopped + 3))):
        [run] = [record.run for record in records if record.HasField("run")]
        assert (run.project, run.display_name) == ("speech", "run")
        assert run.run_id == (folder / "wandb_id.txt").read_text()
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["lm.train.log_every"] == 1
        assert config["lm.train.model"] == "@llama.LlamaConfig()"
        assert config["model"]["num_layers"] == 1
        history = [values(r.history.item) for r in records if r.HasField("history")]
        assert [line["_step"] for line in history] == [*steps]
        for line, written in zip(history, (line for line in lines if line["step"] in steps)):
            assert written.items() <= {**line, "step": line["_step"]}.items()
        summary = {}
        for record in records:
            summary |= values(record.summary.update)
        assert summary["loss"] == history[-1]["loss"]
        assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]
    assert len(found) == 2


def values(items):
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def wandb_records(file):
    """The records in a file of wandb's offline mode: a log of LevelDB with protocol buffers."""
    data, position, record = file.read_bytes(), 7, b""
    assert len(data) <= 32768, "a block, at whose end there may be padding"
    while position + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # Whole, or the last part.
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gin.train.steps=ten", "Error: training.lm.train.steps = 'ten': expected a whole"),
        ("--gin.train.steps=0", "Error: steps 0 must be at least 1."),
    ],
)
def test_mistakes_are_one_line(start, argument, message):
    code, out, err = start(argument).result()
    assert code == 1
    [line] = err.splitlines()
    assert line.startswith(message)
    assert out == ""


@pytest.mark.parametrize(
    ("has_base", "message"),
    [
        (False, "no checkpoint in BASE; give a run's folder"),
        (True, "the model has vocab_size 33002 and the tokenizer 1706 tokens"),
    ],
)
def test_start_and_vocabulary_are_checked_before_the_data_are_read(tmp_path, has_base, message):
    base = SHIPPED_MODEL if has_base else f"{tmp_path}/base"
    done = processes.run(
        processes.run_module,
        "speechgpt_jax.train",
        "--gin_file=gin/runs/llama_7b_stage1.gin",
        f"--output_dir={tmp_path / 'run'}",
        f"--gin.train.start_from={base}",
        "--gin.TOKENIZER=speechgpt_jax/assets/tokenizer",
        f"--gin.UNITS={tmp_path}/units-*.txt",
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {message.replace('BASE', base)}")
