"""The published recipes: the paper's numbers, and all three stages end to end at a tiny size."""

import dataclasses

import pytest

import gin
from speechgpt_jax import gin_utils
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import LlamaConfig
from speechgpt_jax.training.optimizer import AdamW

DATA = {1: "UNITS", 2: "DIALOGUES", 3: "DIALOGUES"}
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
    gin_utils.parse([f"gin/runs/llama_{size}_stage{stage}.gin"], bindings)


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
    parse(size, stage)
    assert gin.query_parameter("load_host_batches.sequence_length") == length
    assert gin.query_parameter("load_host_batches.batch_size") == batch_size
    assert gin.query_parameter("train.steps") == steps
    assert gin_utils.call(AdamW) == AdamW(rate, schedule, warmup, b2=0.999, weight_decay=0.0)
    model = gin_utils.call(LlamaConfig)
    size_of = getattr(LlamaConfig, f"llama_{size}")(rows)
    lora = LoraConfig(8, 16.0, 0.05, ("q_proj", "v_proj")) if stage == 3 else None
    assert dataclasses.asdict(model) == dataclasses.asdict(size_of) | {
        "remat": "full",
        "lora": lora and dataclasses.asdict(lora),
    }
    trainable = "lora" if stage == 3 else "all"
    assert gin.query_parameter("train.trainable") == trainable


def test_embeddings_only():
    gin_utils.parse(
        ["gin/runs/llama_7b_stage1.gin", "gin/stages/train_embeddings_only.gin"],
        ["UNITS = 'a'", "TOKENIZER = 'b'", "lm.train.start_from = 'c'"],
    )
    assert gin.query_parameter("train.trainable") == "embeddings"
