"""The main in a process of its own: a gin file, a signal, mistakes."""

import os
import signal
import time

import pytest

from speechgpt_jax import checkpoints
from speechgpt_jax.shipped import SHIPPED_MODEL
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


def test_sigterm_saves_and_the_same_command_resumes(start, tmp_path):
    # The exit code is for schedulers that restart failed jobs; it is 0 by default.
    main = start("--stopped_exit_code=75")
    while "step 1/" not in main.printed():
        assert main.process.is_alive(), main.printed("stderr")
        time.sleep(0.05)
    os.kill(main.process.pid, signal.SIGTERM)
    sent = time.monotonic()
    code, out, err = main.result()
    assert code == 75, err
    assert time.monotonic() - sent < 30, "the time of a step and of a save"
    assert out.startswith("step 1/")
    assert "The same command resumes from there." in out
    step = int(checkpoints.latest(tmp_path / "run").name)

    code, out, err = start(f"--gin.train.steps={step + 2}").result()
    assert code == 0, err
    assert out.startswith(f"Resuming from step {step} ")
    assert "Next stage:  --gin.train.start_from=" in out
    assert int(checkpoints.latest(tmp_path / "run").name) == step + 2
    assert f"lm.train.steps = {step + 2}" in (tmp_path / "run" / "config.gin").read_text()


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
