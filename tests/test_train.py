"""The main in a process of its own: a gin file, a signal, mistakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt_jax import checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

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


@pytest.fixture
def start(tmp_path):
    """Starts the main with some arguments; processes still running after the test are killed."""
    (tmp_path / "run.gin").write_text(GIN)
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "speechgpt_jax.train", f"--gin_file={tmp_path}/run.gin"]
        process = subprocess.Popen(
            [*command, f"--output_dir={tmp_path}/run", *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": "tests/training"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_saves_and_the_same_command_resumes(start, tmp_path):
    # The exit code is for schedulers that restart failed jobs; it is 0 by default.
    process = start("--stopped_exit_code=75")
    assert process.stdout.readline().startswith("step 1/"), process.stderr.read()
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert time.monotonic() - sent < 30, "the time of a step and of a save"
    assert "The same command resumes from there." in out
    step = int(checkpoints.latest(tmp_path / "run").name)

    out, err = (process := start(f"--gin.train.steps={step + 2}")).communicate()
    assert process.returncode == 0, err
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
    out, err = (process := start(argument)).communicate()
    assert process.returncode == 1
    [line] = err.splitlines()
    assert line.startswith(message)
    assert out == ""
