"""The main compiles a small model for small TPU slices on this machine, and counts what it did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_jax.compilation.topologies import parse_slice

ROOT = Path(__file__).parent.parent
NUM_CHIPS, LENGTH, LAYERS, WIDTH, INNER, VOCAB = 4, 256, 3, 256, 512, 512

GIN = f"""
from __gin__ import dynamic_registration

from speechgpt_jax.models import llama
from speechgpt_jax.training import inputs
from speechgpt_jax.training import lm
from speechgpt_jax.training import optimizer

include 'gin/models/llama_7b.gin'
include 'gin/meshes/fsdp.gin'
include 'gin/stages/modality_adaptation.gin'

llama.LlamaConfig.vocab_size = {VOCAB}
llama.LlamaConfig.hidden_size = {WIDTH}
llama.LlamaConfig.intermediate_size = {INNER}
llama.LlamaConfig.num_layers = {LAYERS}
llama.LlamaConfig.num_heads = 2
llama.LlamaConfig.num_kv_heads = 2
inputs.load_host_batches.batch_size = 4
inputs.load_host_batches.sequence_length = {LENGTH}
optimizer.AdamW.learning_rate = 1e-4
lm.train.steps = 100
"""


@pytest.fixture(scope="module")
def precompile(tmp_path_factory):
    """Calls the main with some arguments; gives the process and the JSON report."""
    folder = tmp_path_factory.mktemp("precompile")
    (folder / "run.gin").write_text(GIN)

    def call(*arguments):
        output = folder / "report.json"
        output.unlink(missing_ok=True)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "speechgpt_jax.precompile"),
                *(f"--gin_file={folder}/run.gin", f"--json={output}", *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, json.loads(output.read_text()) if output.exists() else None

    return call


def test_report_of_a_small_slice(precompile):
    done, report = precompile("--topology=v5e-4", "--batch_per_chip=2")
    assert done.returncode == 0, done.stderr
    assert report["fits"] and 0 < report["peak_gib"] < 1
    assert report["batch_per_chip"] == 2
    # Full rematerialization: four passes, but the last product of a layer isn't needed twice, nor
    # are the logits of a row that is one chunk.
    tokens = 2 * LENGTH
    layer = 4 * WIDTH * 2 * 128 + 3 * WIDTH * INNER
    weights = LAYERS * layer + WIDTH * VOCAB
    expected = (8 * weights - 2 * LAYERS * WIDTH * INNER - 2 * WIDTH * VOCAB) * tokens
    assert report["flops_per_chip"] == pytest.approx(expected, rel=1e-3)
    assert report["model_flops_per_chip"] == 6 * weights * tokens
    gathered = [row for row in report["collectives"] if row["op"] == "all-gather"]
    # Forwards and backwards, every kernel of every layer is gathered in bfloat16.
    assert sum(row["bytes"] for row in gathered) >= 2 * 2 * LAYERS * layer
    assert any(row["asynchronous"] for row in gathered)
    assert "collective" in done.stdout and "GiB a chip" in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--topology=v7-4", "Error: topology 'v7-4' is unknown: write one of v4, v5p, v5e, v6e"),
        ("--topology=v5e-16", "Error: batch of 4 rows can't be cut over data x fsdp = 16 pieces"),
    ],
)
def test_mistakes_are_one_line(precompile, argument, message):
    done, report = precompile(argument)
    assert done.returncode == 1 and report is None
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr


def test_slices_are_named_as_they_are_sold():
    assert parse_slice("v4-128")[1] == (4, 4, 4)
    assert parse_slice("v5p-16")[1] == (2, 2, 2)
    assert parse_slice("v5e-256")[1] == (16, 16, 1)
    with pytest.raises(ValueError, match="v4 comes in sizes 8, 16, 32"):
        parse_slice("v4-10")
