"""The published recipes: the paper's numbers, and all three stages end to end at a tiny size."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

import gin
from speechgpt_jax import checkpoints, gin_utils
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.tokenizer import DEMO_TOKENIZER
from speechgpt_jax.training import lm
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.progress import read_metrics
from tests.sizes import llama

pytestmark = pytest.mark.slow

DATA = {1: "UNITS", 2: "DIALOGUES", 3: "DIALOGUES"}
# Touvron et al. 2023, table 2, and the released checkpoints' MLP widths.
SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
TASK = {1: "unit_lines", 2: "dialogue_lines", 3: "dialogue_lines"}


def parse(
    size, stage, data="gs://b/*", tokenizer="gs://b/tokenizer", start_from="gs://b/0", more=()
):
    bindings = [
        f"{DATA[stage]} = '{data}'",
        f"TOKENIZER = '{tokenizer}'",
        f"lm.train.start_from = {start_from!r}",
        *more,
    ]
    gin_utils.parse([f"gin/runs/{size}_stage{stage}.gin"], bindings)


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize(
    ("stage", "length", "batch_size", "steps", "rate", "schedule", "warmup", "rows"),
    [
        (1, 1024, 768, 900, 5e-5, "linear", 0.0, 33002),
        (2, 512, 1536, 2100, 2e-5, "cosine", 0.03, 33006),
        (3, 1024, 128, 4200, 2e-5, "cosine", 0.03, 33006),
    ],
)
def test_the_papers_numbers(size, stage, length, batch_size, steps, rate, schedule, warmup, rows):
    parse(f"llama_{size}", stage)
    assert gin.query_parameter("load_host_batches.sequence_length") == length
    assert gin.query_parameter("load_host_batches.batch_size") == batch_size
    assert gin.query_parameter("lm.train.steps") == steps
    assert gin_utils.call(AdamW) == AdamW(rate, schedule, warmup, b2=0.999, weight_decay=0.0)
    model = gin_utils.call(LlamaConfig)
    lora = LoraConfig(8, 16.0, 0.05, ("q_proj", "v_proj")) if stage == 3 else None
    hidden, intermediate, layers, heads = SIZES[size]
    assert model == LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        remat="full",
        lora=lora,
    )
    trainable = "lora" if stage == 3 else "all"
    assert gin.query_parameter("lm.train.trainable") == trainable


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "first"),
    [
        ("qwen2_5_0_5b", 151_665),
        ("qwen2_5_7b", 151_665),
        ("llama3_1b", 128_256),
        ("llama3_8b", 128_256),
        ("smollm2_135m", 49_152),
    ],
)
def test_recipes_of_other_bases(size, first, stage):
    """The sizes are those of gin/models; in stage 3 the rows of all added tokens are trained."""
    vocab_size = first + 1006
    expected = llama(size, vocab_size)
    parse(size, stage)
    model = gin_utils.call(LlamaConfig)
    assert dataclasses.replace(model, lora=None) == expected
    assert model.new_tokens == range(first if stage == 3 else vocab_size, vocab_size)


TINY = (
    "LlamaConfig.vocab_size = 1706",
    "LlamaConfig.hidden_size = 32",
    "LlamaConfig.intermediate_size = 48",
    "LlamaConfig.num_layers = 1",
    "LlamaConfig.num_heads = 4",
    "LlamaConfig.num_kv_heads = 4",
    "LlamaConfig.head_dim = 8",
    "load_host_batches.batch_size = 2",
    "load_host_batches.sequence_length = 64",
    "lm.train.log_every = 1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of unit text and of dialogues."""
    folder = tmp_path_factory.mktemp("data")
    units = "".join(f"<{i}>" for i in range(60))
    dialogue = "[Human]: hello<eoh> [SpeechGPT]: <sosp><1><2><eosp><eoa> "
    record = json.dumps({"prefix": "You are kind.\n", "plain_text": dialogue})
    (folder / "units.txt").write_text(f"<sosp>{units}<eosp>\n" * 20)
    (folder / "dialogues.jsonl").write_text(f"{record}\n" * 20)
    return {"UNITS": folder / "units.txt", "DIALOGUES": folder / "dialogues.jsonl"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run with random weights, in place of the LLaMA that the first stage starts from."""
    folder = tmp_path_factory.mktemp("published")
    parse("llama_7b", 1, more=TINY)
    model = gin_utils.call(LlamaConfig)
    parameters = nnx.state(Llama(model, rngs=nnx.Rngs(0)), nnx.Param)
    metadata = {"config": "", "model": dataclasses.asdict(model)}
    named = checkpoints.flatten(parameters)
    checkpoints.save_parameters(folder, ((k, np.asarray(x)) for k, x in named.items()), metadata)
    return folder


def test_three_stages_one_from_another(data, published, tmp_path):
    start_from = str(published)
    for stage in (1, 2, 3):
        # A task is registered once in a process.
        more = [*TINY, "lm.train.steps = 2", f"{TASK[stage]}.name = 'tiny_{stage}'"]
        parse("llama_7b", stage, data[DATA[stage]], DEMO_TOKENIZER, start_from, more)
        output_dir = str(tmp_path / f"stage{stage}")
        gin_utils.call(lm.train, output_dir=output_dir, config_text=gin_utils.operative_config)
        start_from = output_dir
        assert {"loss", "unit_loss", "learning_rate"} <= set(read_metrics(output_dir)[-1])
    # The last stage saves only the adapter, with the second stage's checkpoint as its base.
    assert checkpoints.read_metadata(start_from)["base"].endswith("stage2/checkpoints/2")


def test_the_mixture_of_stage_2_keeps_the_template_of_the_recipe():
    parse_more = ["gin/runs/qwen2_5_7b_stage2.gin", "gin/stages/cross_modal_mixture.gin"]
    macros = [f"{name} = 'a'" for name in ("TOKENIZER", "DIALOGUES", "INSTRUCTIONS")]
    gin_utils.parse(parse_more, [*macros, "lm.train.start_from = 'b'"])
    assert gin.query_parameter("TEMPLATE/gin.macro.value") == "chatml"


def test_embeddings_only():
    gin_utils.parse(
        ["gin/runs/llama_7b_stage1.gin", "gin/stages/train_embeddings_only.gin"],
        ["UNITS = 'a'", "TOKENIZER = 'b'", "lm.train.start_from = 'c'"],
    )
    assert gin.query_parameter("lm.train.trainable") == "embeddings"


def test_the_shipped_models_run_can_answer_its_tasks():
    gin_utils.parse(["gin/runs/tiny_stage2.gin"], [])
    arguments = gin_utils.arguments(lm.train, ["answered", "tokenizer", "model"])
    arguments["answered"].check(arguments["tokenizer"], arguments["model"])
