"""Conversion of LLaMA in both directions, compared with transformers, in the released layout."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx

from speechgpt_jax import checkpoints
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.conversion import llama, model_card, shards
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.loading import build_llama
from speechgpt_jax.decoding.masks import ANY, FORMS, grammar
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import LinearRopeScaling
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.tokenizer import SentencePieceTokenizer, Tokenizer
from speechgpt_jax.training.lm import train
from speechgpt_jax.training.optimizer import AdamW
from tests.conversion.released import (
    LLAMA3_ROPE,
    PROMPTS,
    SMALL,
    TOKENIZER,
    assert_same_logits,
    change_json,
)
from tests.models.hugging_face import CONFIG, FAMILIES, reference
from tests.training.toy import RandomBatches

pytestmark = pytest.mark.slow


def test_the_released_layout_gives_the_logits_of_transformers(run, theirs):
    ours = checkpoints.load_model(run, build_llama)
    assert ours.config == dataclasses.replace(SMALL, dtype="float32", scan_layers=True)
    assert_same_logits(ours, theirs)
    assert Tokenizer.from_pretrained(run / "tokenizer").added_tokens == TOKENIZER.added_tokens


def test_greedy_generation_is_that_of_transformers(run, exported):
    """200 tokens; transformers uses the exported tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model.generate(
            **batch, do_sample=False, max_new_tokens=200, min_new_tokens=200
        ).numpy()[:, -200:]
    ours = checkpoints.load_model(run, build_llama)
    prompts = [[TOKENIZER.bos_id, *TOKENIZER.encode(prompt)] for prompt in PROMPTS]
    requests = [
        Request(prompt, 200, [TOKENIZER.eos_id], min_new_tokens=200, sampling=GREEDY)
        for prompt in prompts
    ]
    np.testing.assert_array_equal(Engine(ours, num_slots=2).generate(requests), theirs)


def test_the_forms_of_answers_are_exported_as_grammars(run, exported):
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    written = {path.stem: path.read_text() for path in (exported / "grammars").iterdir()}
    assert written == {form: grammar(form, tokenizer) for form in (*FORMS, ANY)}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, tmp_path):
    """Sharded safetensors as transformers writes them, in and out: equal files, logits, answers."""
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    model = reference(config, family="Mistral" if family == "Mistral" else None)
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").exists()
    llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    ours = checkpoints.load_model(tmp_path / "run", build_llama)
    assert ours.config == dataclasses.replace(config, scan_layers=True)
    assert_same_logits(ours, model)
    prompt = [1, 17, 90, 45, 140]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=30, min_new_tokens=30
        )
    request = Request(prompt, 30, [2], min_new_tokens=30, sampling=GREEDY)
    assert Engine(ours, num_slots=1).generate([request])[0] == expected[0, len(prompt) :].tolist()

    llama.to_hf(tmp_path / "run", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    before, after = (read_tensors(tmp_path / name) for name in ("in", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip_is_bit_exact(dtype, tmp_path, monkeypatch):
    reference(CONFIG).to(dtype).save_pretrained(tmp_path / "in", max_shard_size="50KB")
    llama.from_hf(tmp_path / "in", tmp_path / "run")
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    before, after = (read_tensors(tmp_path / name) for name in ("in", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == dtype
        assert torch.equal(after[name], tensor), name
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


NEW_LLAMA3 = {"rope_parameters": LLAMA3_ROPE}
OLD_LLAMA3 = {
    "rope_parameters": None,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SOURCES = {
    "llama3_new": (NEW_LLAMA3 | {"eos_token_id": [1501, 1502]}, {"eos_token_id": [1501, 1502]}),
    "llama3_old": (OLD_LLAMA3 | {"torch_dtype": "float32", "dtype": None}, {"temperature": 0.6}),
    "linear_old": (
        {
            "rope_parameters": None,
            "rope_theta": 10_000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        {"do_sample": True, "top_p": 0.9},
    ),
    "no_theta": ({"rope_parameters": None}, {"max_length": 4096}),
    "padding_without_a_row": ({"pad_token_id": -1}, {"pad_token_id": 3006}),
    "other_fields": (
        {"initializer_range": 0.03, "attention_dropout": 0.1, "use_cache": False, "new_field": 1},
        {},
    ),
}


def write_source(folder: Path, config: dict, generation: dict) -> tuple[dict, dict, dict]:
    """A small LLaMA with token ids and lengths of its own; returns its JSON files."""
    reference(SMALL).save_pretrained(folder)
    ids = {"bos_token_id": 1500, "eos_token_id": 1501, "pad_token_id": 1505}
    change_json(folder / "config.json", **(ids | {"max_position_embeddings": 131072} | config))
    change_json(folder / "generation_config.json", **(ids | generation))
    change_json(folder / "tokenizer_config.json", model_max_length=16384)
    TOKENIZER.save_pretrained(folder)
    return read_configs(folder)


def read_configs(folder: Path) -> tuple[dict, dict, dict]:
    names = "config", "generation_config", "tokenizer_config"
    return tuple(json.loads((folder / f"{name}.json").read_text()) for name in names)


def assert_within(before: dict, after: dict):
    """Every field of `before` is in `after`, unchanged."""
    assert before == {name: after.get(name, "missing") for name in before}


@pytest.mark.parametrize(("config", "generation"), SOURCES.values(), ids=SOURCES)
def test_fields_that_a_run_does_not_change_survive_the_round_trip(config, generation, tmp_path):
    before = write_source(tmp_path / "in", config, generation)
    llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    after = read_configs(tmp_path / "out")
    assert_within(before[0], after[0])
    assert after[1] == before[1]
    assert after[2]["model_max_length"] == 16384
    # transformers reads the same out of both, whatever the spelling.
    theirs, again = (
        transformers.AutoConfig.from_pretrained(tmp_path / name) for name in ("in", "out")
    )
    for name in ("rope_parameters", "bos_token_id", "eos_token_id", "max_position_embeddings"):
        assert getattr(again, name) == getattr(theirs, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(checkpoints.load_model(tmp_path / "run", build_llama), model)


def test_an_empty_generation_config_stays_empty(tmp_path):
    write_source(tmp_path / "in", {}, {})
    (tmp_path / "in" / "generation_config.json").write_text("{}")
    llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    assert read_configs(tmp_path / "out")[1] == {}


def test_context_length_overrides_the_source(tmp_path):
    write_source(tmp_path / "in", {}, {})
    llama.from_hf(tmp_path / "in", tmp_path / "run")
    llama.to_hf(tmp_path / "run", tmp_path / "out", context_length=512)
    config, _, tokenizer = read_configs(tmp_path / "out")
    assert (config["max_position_embeddings"], tokenizer["model_max_length"]) == (512, 512)


def test_a_run_trained_from_a_converted_one_keeps_its_fields(tmp_path):
    """Except those that training changed: vocabulary size and RoPE."""
    config, generation, _ = write_source(tmp_path / "in", *SOURCES["llama3_new"])
    llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    added = TOKENIZER.added_tokens | {"<new>": TOKENIZER.vocab_size}
    tokenizer = SentencePieceTokenizer(TOKENIZER.model, added)
    model = dataclasses.replace(
        LlamaConfig.from_dict(checkpoints.read_metadata(tmp_path / "run")["model"]),
        vocab_size=tokenizer.vocab_size,
        rope_scaling=LinearRopeScaling(2.0),
    )
    train(
        model=model,
        tokenizer=tokenizer,
        batches=RandomBatches(),
        optimizer=AdamW(learning_rate=1e-3),
        steps=4,
        output_dir=str(tmp_path / "trained"),
        start_from=str(tmp_path / "run"),
    )
    llama.to_hf(tmp_path / "trained", tmp_path / "out")
    after = read_configs(tmp_path / "out")
    assert after[1] == generation
    changed = {"vocab_size": 3007, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    del config["rope_parameters"]
    assert_within(config | changed, after[0])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(checkpoints.load_model(tmp_path / "trained", build_llama), theirs)


def test_a_run_without_a_source_is_exported_with_the_ids_of_its_tokenizer(tmp_path):
    save_run(tmp_path / "run", Llama(SMALL, rngs=nnx.Rngs(0)))
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    for fields in read_configs(tmp_path / "out")[:2]:
        assert [fields[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 0]


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 1e6, False),
        ("float16", -65_520.0, False),
        ("float16", 65_504.0, True),
        ("float16", 1e-12, True),  # Small numbers may become 0.
        ("bfloat16", 3.4e38, False),
        ("bfloat16", 1e-42, True),
        ("bfloat16", 1e38, True),
    ],
)
def test_numbers_too_large_for_a_dtype_are_refused(dtype, value, fits, tmp_path):
    model = reference(CONFIG)
    with torch.no_grad():
        model.model.norm.weight[5] = value
    model.save_pretrained(tmp_path / "in")
    llama.from_hf(tmp_path / "in", tmp_path / "run")
    if fits:
        llama.to_hf(tmp_path / "run", tmp_path / "out", dtype)
        tensor = read_tensors(tmp_path / "out")["model.norm.weight"]
        assert tensor[5].item() == torch.tensor(value).to(tensor.dtype).item()
    else:
        shown = re.escape(f"{abs(value):g}")
        message = rf"model.norm.weight holds {shown}, too large for {dtype}.*--dtype="
        with pytest.raises(UserError, match=message):
            llama.to_hf(tmp_path / "run", tmp_path / "out", dtype)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 2e-8), ("bfloat16", 4e-41)])
def test_a_tensor_that_would_become_0_is_refused(dtype, largest, tmp_path):
    model = reference(CONFIG)
    name = "model.layers.1.mlp.up_proj.weight"
    weight = model.get_parameter(name)
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight) * largest)
        model.get_parameter("model.layers.0.mlp.up_proj.weight").zero_()
    model.save_pretrained(tmp_path / "in")
    llama.from_hf(tmp_path / "in", tmp_path / "run")
    message = (
        rf"{name} holds at most {str(largest)[:1]}.*, all of it too small for {dtype} .*=float32"
    )
    with pytest.raises(UserError, match=message):
        llama.to_hf(tmp_path / "run", tmp_path / "out", dtype)
    llama.to_hf(tmp_path / "run", tmp_path / "out", "float32")
    assert read_tensors(tmp_path / "out")[name].equal(weight)


def test_float64_weights_become_float32(tmp_path):
    model = reference(CONFIG)
    model.double().save_pretrained(tmp_path / "in")
    llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    assert_same_logits(checkpoints.load_model(tmp_path / "run", build_llama), model.float())


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_float64_weights_too_large_for_float32_are_refused(name, tmp_path):
    model = reference(CONFIG).double()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = 1e300
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(UserError, match=f"{name} holds .*too large for float32; get the file"):
        llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("first", "second", "widest"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float64, torch.bfloat16, torch.float32),
    ],
)
def test_layers_of_different_dtypes_take_the_widest(first, second, widest, tmp_path):
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    model = reference(CONFIG).bfloat16()
    tensors = model.state_dict()
    for name, dtype in zip(names, (first, second)):
        # Larger than float16 numbers, in all dtypes but that.
        large = 1.0 if dtype == torch.float16 else 1e7
        tensors[name] = (tensors[name].double() * large).to(dtype)
    model.config.save_pretrained(tmp_path / "in")
    safetensors.torch.save_file(tensors, tmp_path / "in" / "model.safetensors")
    llama.from_hf(tmp_path / "in", tmp_path / "run")
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    for name, tensor in tensors.items():
        if name in names:
            assert after[name].dtype == widest
        assert torch.equal(after[name], tensor.to(after[name].dtype)), name


def read_tensors(folder: Path) -> dict:
    files = sorted(folder.glob("*.safetensors"))
    return {n: x for file in files for n, x in safetensors.torch.load_file(file).items()}


def save_run(folder: Path, model: Llama, config: str = ""):
    """A run as training leaves it."""
    metadata = {"config": config, "model": dataclasses.asdict(model.config)}
    store = Checkpoints(folder, metadata=metadata)
    store.save(3, {"params": checkpoints.flatten(nnx.state(model))})
    store.close()
    TOKENIZER.save_pretrained(folder / "tokenizer")


def test_a_trained_run_is_exported_with_padding_dropped_and_a_card(tmp_path):
    model = Llama(dataclasses.replace(SMALL, dtype="float32"), rngs=nnx.Rngs(0))
    config = "train.steps = 3\ntrain.start_from = 'gone'\nload_host_batches.mixture = 'my_mixture'"
    save_run(tmp_path / "stage2", model, config)
    (tmp_path / "stage2" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.25}\n')
    figures = {"test": {"my_asr": {"wer": 0.123}}}
    (tmp_path / "stage2" / "evaluation.json").write_text(json.dumps(figures))

    llama.to_hf(tmp_path / "stage2", tmp_path / "out", "bfloat16", context_length=512)

    tensors = read_tensors(tmp_path / "out")
    assert tensors["model.embed_tokens.weight"].shape[0] == SMALL.vocab_size
    assert {x.dtype for x in tensors.values()} == {torch.bfloat16}
    exact = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert_same_logits(model, exact, rtol=2e-2)  # bfloat16 weights
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.7, 0.8, 50)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| stage2 | my_mixture | 3 | 1.250 |" in card
    assert "| test | my_asr | wer | 0.123 |" in card

    (tmp_path / "stage2" / "evaluation.json").write_text('{"test": ')
    with pytest.raises(UserError, match="figures of speechgpt evaluate"):
        llama.to_hf(tmp_path / "stage2", tmp_path / "again")


def test_the_card_ends_at_a_stage_without_checkpoints(tmp_path):
    save_run(tmp_path / "stage1", Llama(SMALL, rngs=nnx.Rngs(0)))
    save_run(
        tmp_path / "stage2",
        Llama(SMALL, rngs=nnx.Rngs(0)),
        f"train.start_from = '{tmp_path / 'stage1'}'",
    )
    both = [name for name, *_ in model_card.stages(tmp_path / "stage2")]
    shutil.rmtree(tmp_path / "stage1" / "checkpoints" / "3")
    last = [name for name, *_ in model_card.stages(tmp_path / "stage2")]
    assert (both, last) == (["stage1", "stage2"], ["stage2"])


def test_the_card_of_a_run_that_was_continued_in_place(tmp_path):
    itself = f"train.start_from = '{tmp_path / 'stage1'}'"
    save_run(tmp_path / "stage1", Llama(SMALL, rngs=nnx.Rngs(0)), itself)
    assert [name for name, *_ in model_card.stages(tmp_path / "stage1")] == ["stage1"]
