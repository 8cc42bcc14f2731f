"""The main compiles a small model for a small TPU slice on this machine and counts its flops."""

import collections
import importlib.util
import json
import types

import pytest

from speechgpt_jax.compilation.report import OutOfMemory, Report, largest_that_fits
from speechgpt_jax.compilation.topologies import (
    GPUS,
    devices,
    parse_gpus,
    parse_slice,
    usable_memory,
)
from speechgpt_jax.errors import UserError
from tests import processes

pytestmark = pytest.mark.slow

LENGTH, LAYERS, WIDTH, INNER, VOCAB = 256, 3, 256, 512, 512
LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER  # Weights.

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
    """Calls the main with some arguments; returns the process and the JSON report."""
    folder = tmp_path_factory.mktemp("precompile")
    (folder / "run.gin").write_text(GIN)

    def call(*arguments):
        output = folder / "report.json"
        output.unlink(missing_ok=True)
        done = processes.run(
            processes.run_module,
            "speechgpt_jax.precompile",
            *(f"--gin_file={folder}/run.gin", f"--json={output}", *arguments),
        )
        return done, json.loads(output.read_text()) if output.exists() else None

    return call


def moved_bytes(report):
    """{op: bytes} of all collectives."""
    moved = collections.Counter()
    for row in report["collectives"]:
        moved[row["op"]] += row["bytes"]
    return moved


# On tpu7x the SparseCores run the collectives, in computations of their own.
@pytest.mark.parametrize("topology", ["v5p-8", "tpu7x-8"])
def test_report_of_a_small_slice(precompile, topology):
    done, report = precompile(f"--topology={topology}", "--batch_per_chip=2")
    assert done.returncode == 0, done.stderr
    assert report["fits"] and 0 < report["peak_gib"] < 1
    assert report["batch_per_chip"] == 2
    # Full rematerialization: four passes, but the last product of a layer isn't needed twice, nor
    # are the logits of a vocabulary that is one block.
    tokens = 2 * LENGTH
    weights = LAYERS * LAYER + WIDTH * VOCAB
    expected = (8 * weights - 2 * LAYERS * WIDTH * INNER - 2 * WIDTH * VOCAB) * tokens
    assert report["flops_per_chip"] == pytest.approx(expected, rel=1e-3)
    assert report["model_flops_per_chip"] == 6 * weights * tokens
    moved = moved_bytes(report)
    # Forwards and backwards, every kernel of every layer is gathered in bfloat16, ...
    assert moved["all-gather"] >= 2 * 2 * LAYERS * LAYER
    asynchronous = [row for row in report["collectives"] if row["asynchronous"]]
    assert any(row["op"] == "all-gather" for row in asynchronous)
    # ... and no gradient of a kernel reaches a device that doesn't keep it.
    assert moved["reduce-scatter"] >= 2 * weights
    assert moved["all-reduce"] < 0.01 * weights
    assert "collective" in done.stdout and "GiB per chip" in done.stdout


def test_new_rows_of_an_adapter_compile_for_narrow_shards(precompile):
    """XLA once failed to compile the gradient of SmolLM2's new rows, 576 wide, on 16 chips."""
    done, report = precompile(
        *("--topology=v5e-16", "--gin_file=gin/runs/smollm2_135m_stage3.gin"),
        *("--gin.llama.LlamaConfig.num_layers=2", "--batch_per_chip=1"),
        "--gin.inputs.load_host_batches.sequence_length=128",
    )
    assert done.returncode == 0, done.stderr
    assert report["fits"]


def test_report_of_decoding(precompile):
    rows = 4
    done, report = precompile("--topology=v5e-4", f"--batch_per_chip={rows}", "--decode")
    assert done.returncode == 0, done.stderr
    # No program copies the cache; each device has that of all rows.
    cache = 2 * LAYERS * 4 * rows * LENGTH * WIDTH * 2
    assert report["fits"] and report["peak_gib"] - report["argument_gib"] < cache / 2**30
    expected = 2 * rows * (LAYERS * LAYER + WIDTH * VOCAB)
    assert report["model_flops_per_chip"] == expected
    assert report["flops_per_chip"] == pytest.approx(expected, rel=0.1), "one token for each row"
    # The weights stay where they are.
    assert moved_bytes(report)["all-gather"] < 2 * LAYERS * LAYER / 10


def test_long_rows_are_exchanged_for_heads(precompile):
    context = "--gin.sharding.MeshConfig.context=2"
    done, report = precompile("--topology=v5p-8", "--batch_per_chip=2", context)
    assert done.returncode == 0, done.stderr
    moved = moved_bytes(report)
    # Queries, keys, values and heads: forwards, once more for the backward pass, and their
    # gradients; the heads are not needed again.
    tokens = 2 * LENGTH
    assert moved["all-to-all"] == pytest.approx(11 * LAYERS * tokens * WIDTH * 2, rel=0.3)
    assert moved["reduce-scatter"] >= 2 * (LAYERS * LAYER + WIDTH * VOCAB)


def test_fewer_key_heads_than_shards(precompile):
    """Each device of `model` gets a key head, which a kernel for TPUs needs."""
    done, report = precompile(
        *("--topology=v5e-4", "--gin_file=gin/meshes/fsdp_model4.gin", "--batch_per_chip=1"),
        *("--gin.llama.LlamaConfig.num_heads=4", "--gin.llama.LlamaConfig.num_kv_heads=2"),
    )
    assert done.returncode == 0, done.stderr
    assert report["fits"]


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (1, "batch of 4 rows can't be sharded over data x fsdp = 16 pieces"),
        (4, "the model's num_heads 2 can't be sharded over context x model = 4 devices"),
    ],
)
def test_mistakes_are_one_line(precompile, context, message):
    done, report = precompile("--topology=v5e-16", f"--gin.sharding.MeshConfig.context={context}")
    assert done.returncode == 1 and report is None
    assert done.stderr.splitlines()[-1].startswith(f"Error: {message}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("largest", [0, 1, 2, 41, 63, 64, 65, 1000])
def test_the_largest_batch_is_found_in_few_steps(largest):
    tried = []

    def report_of(n):
        tried.append(n)
        # Memory grows with the batch; for programs that don't fit libtpu reports a bit less.
        fits = n <= largest
        return Report(fits, 2.0 + n - 0.5 * (not fits), n, 1.0, available_gib=largest + 2.2)

    best = largest_that_fits(report_of)
    assert (best.batch_per_chip if best else 0) == largest
    assert len(tried) == len(set(tried)) <= 6


def test_libtpus_messages_of_short_memory():
    for message in (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (17.50G) exceeds available HBM (15.75G).",
    ):
        error = OutOfMemory.from_message(message)
        assert (error.needed, error.available) == (17.5, 15.75)
    assert OutOfMemory.from_message("INTERNAL: a layout is impossible.") is None


def test_slices_have_product_names():
    assert parse_slice("v4-128")[1] == (4, 4, 4)
    assert parse_slice("v5p-16")[1] == (2, 2, 2)
    assert parse_slice("v5e-256")[1] == (16, 16, 1)
    assert parse_slice("tpu7x-128")[1] == (4, 4, 4)
    with pytest.raises(ValueError, match="v4 comes in sizes 8, 16, 32"):
        parse_slice("v4-10")
    with pytest.raises(
        ValueError, match="'v7-4' is unknown: write one of v4, v5p, v5e, v6e, tpu7x, a100, h100"
    ):
        parse_slice("v7-4")


def test_gpus_are_counted_in_hosts_of_eight():
    assert parse_gpus("h100-64") == (GPUS["h100"], 8, 8)
    assert parse_gpus("a100-4") == (GPUS["a100"], 1, 4)
    for size in ("12", "0", "-8", "x", ""):
        with pytest.raises(UserError, match="h200 comes in 1, 2, 4 and multiples of 8"):
            parse_gpus(f"h200-{size}")
    with pytest.raises(UserError, match="h100-8: GPUs have no slices, got 2"):
        devices("h100-8", num_slices=2)


def test_gpus_need_a_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]"):
        devices("h100-8")


def test_gpus_have_the_memory_that_a_run_may_use(monkeypatch):
    h100, tpu = (
        types.SimpleNamespace(device_kind=kind) for kind in (GPUS["h100"].product, "TPU v5e")
    )
    assert usable_memory(h100) == 0.75 * 84942979072
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert usable_memory(h100) == 0.9 * 84942979072
    assert usable_memory(tpu) is None
    for text in ("all", "nan", "0", "2"):
        monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", text)
        number = "a finite number" if text == "nan" else "a number"
        with pytest.raises(UserError, match=f"XLA_CLIENT_MEM_FRACTION={text}: expected {number}"):
            usable_memory(h100)
