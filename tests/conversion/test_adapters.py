"""Conversion of LoRA adapters in both directions, compared with PEFT."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import optax
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from flax import nnx

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion import adapters, llama
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.loading import build_llama
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.training.train_step import TRAINABLE, TrainState, make_train_step
from tests.conversion.released import SMALL, assert_same_logits, change_json
from tests.models.hugging_face import CONFIG, FAMILIES, reference, with_config
from tests.training.toy import random_batch
from tools import convert_llama

pytestmark = pytest.mark.slow

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
ALL_PROJECTIONS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def trained(theirs, **fields) -> peft.PeftModel:
    """`theirs` with an adapter whose weights are random, as after some training."""
    model = reference(SMALL)
    model.load_state_dict(theirs.state_dict())
    return with_random_adapter(model, **fields)


def with_random_adapter(model, **fields) -> peft.PeftModel:
    """`model` itself, changed."""
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft.LoraConfig(**(PLAIN | fields))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, theirs):
    """A PEFT folder on top of the released one: SpeechGPT-7B-com."""
    model = trained(theirs)
    folder = tmp_path_factory.mktemp("released") / "SpeechGPT-com"
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def adapter_run(run, adapter):
    out = run.parent / "com"
    adapters.from_peft(adapter[0], out, run)
    return out


def test_an_adapter_is_converted_with_its_base(adapter, adapter_run):
    ours = checkpoints.load_model(adapter_run, build_llama)
    assert ours.config.lora == LoraConfig(4, 8, 0.0, ("q_proj", "v_proj"))
    assert_same_logits(ours, adapter[1])
    size = sum(f.stat().st_size for f in (adapter_run / "checkpoints").rglob("*") if f.is_file())
    assert size < 100_000


def test_an_adapter_is_exported_separately_and_merged(adapter, adapter_run, exported, tmp_path):
    adapters.to_peft(adapter_run, tmp_path / "adapter", str(exported))
    exported_adapter = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32
    )
    ours = checkpoints.load_model(adapter_run, build_llama)
    assert_same_logits(ours, exported_adapter)
    before, after = (read_adapter(folder) for folder in (adapter[0], tmp_path / "adapter"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])

    llama.to_hf(adapter_run, tmp_path / "merged", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_same_logits(ours, merged)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "| cm | not known |" in card and "| com | not known |" in card


SAME_IN_ALL_LAYERS = {
    "all_linear": ({"target_modules": "all-linear"}, ALL_PROJECTIONS),
    "regex": ({"target_modules": r".*\.(q|v)_proj"}, ("q_proj", "v_proj")),
    "suffix": ({"target_modules": ["self_attn.q_proj"]}, ("q_proj",)),
    "full_names": (
        {"target_modules": [f"model.layers.{layer}.mlp.up_proj" for layer in range(2)]},
        ("up_proj",),
    ),
    "excluded": (
        {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
        tuple(name for name in ALL_PROJECTIONS if name != "q_proj"),
    ),
    "one_pattern_of_layers": (
        {"layers_to_transform": [0, 1], "layers_pattern": ["h", "layers"]},
        ("q_proj", "v_proj"),
    ),
    "all_layers_named": ({"layers_to_transform": [0, 1]}, ("q_proj", "v_proj")),
    "rslora": ({"use_rslora": True}, ("q_proj", "v_proj")),
    "one_rank_in_patterns": (
        {"rank_pattern": {"q_proj": 6, "v_proj": 6}, "alpha_pattern": {".*_proj": 5}},
        ("q_proj", "v_proj"),
    ),
    "rslora_with_patterns": (
        {"use_rslora": True, "rank_pattern": {".*": 3}, "alpha_pattern": {".*": 5}},
        ("q_proj", "v_proj"),
    ),
    "gaussian": ({"init_lora_weights": "gaussian"}, ("q_proj", "v_proj")),
    "no_init": ({"init_lora_weights": False}, ("q_proj", "v_proj")),
    "eva": ({"init_lora_weights": "eva", "eva_config": peft.EvaConfig()}, ("q_proj", "v_proj")),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, ("q_proj", "v_proj")),
    "mica": ({"init_lora_weights": "mica"}, ("q_proj", "v_proj")),
}


@pytest.mark.parametrize(("fields", "targets"), SAME_IN_ALL_LAYERS.values(), ids=SAME_IN_ALL_LAYERS)
def test_the_same_lora_in_all_layers_in_every_spelling(fields, targets, theirs, run, tmp_path):
    model = trained(theirs, **fields)
    model.save_pretrained(tmp_path / "in")
    adapters.from_peft(tmp_path / "in", tmp_path / "run", run)
    ours = checkpoints.load_model(tmp_path / "run", build_llama)
    assert ours.config.lora.targets == targets
    assert_same_logits(ours, model)

    adapters.to_peft(tmp_path / "run", tmp_path / "out", "base")
    base = reference(SMALL)
    base.load_state_dict(theirs.state_dict())
    assert_same_logits(ours, peft.PeftModel.from_pretrained(base, tmp_path / "out").eval())


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_adapters_of_other_families(family, tmp_path):
    base = reference(dataclasses.replace(CONFIG, **FAMILIES[family]))
    base.save_pretrained(tmp_path / "base")
    llama.from_hf(tmp_path / "base", tmp_path / "run", "float32")
    model = with_random_adapter(base, target_modules="all-linear")
    model.save_pretrained(tmp_path / "in")
    adapters.from_peft(tmp_path / "in", tmp_path / "adapted", tmp_path / "run")
    ours = checkpoints.load_model(tmp_path / "adapted", build_llama)
    assert_same_logits(ours, model)
    llama.to_hf(tmp_path / "adapted", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(base)
    assert_same_logits(ours, merged)


# The last ten tokens, of tied and of two tables, and with frozen outputs.
NEW_TOKENS = {
    "tied": ("Qwen2", [*range(140, 150)]),
    "two_tables": ("Llama", {name: [*range(140, 150)] for name in ("embed_tokens", "lm_head")}),
    "only_embeddings": ("Llama", [*range(140, 150)]),
}


@pytest.mark.parametrize(("family", "indices"), NEW_TOKENS.values(), ids=NEW_TOKENS)
def test_new_tokens_are_those_of_peft(family, indices, tmp_path):
    """In, out and merged: logits, files and answers."""
    base = reference(dataclasses.replace(CONFIG, **FAMILIES[family]))
    base.save_pretrained(tmp_path / "base")
    llama.from_hf(tmp_path / "base", tmp_path / "run", "float32")
    model = with_random_adapter(base, trainable_token_indices=indices)
    model.save_pretrained(tmp_path / "in")
    adapters.from_peft(tmp_path / "in", tmp_path / "adapted", tmp_path / "run")
    ours = checkpoints.load_model(tmp_path / "adapted", build_llama)
    assert ours.config.new_tokens == range(140, 150)
    assert_same_logits(ours, model)
    request = Request([1, 145, 20], 20, stop_ids=[2], min_new_tokens=20, sampling=GREEDY)
    expected = model.generate(
        input_ids=torch.tensor([request.prompt]),
        do_sample=False,
        max_new_tokens=20,
        min_new_tokens=20,
    )
    assert Engine(ours, num_slots=1).generate([request]) == expected[:, 3:].tolist()

    adapters.to_peft(tmp_path / "adapted", tmp_path / "out", str(tmp_path / "base"))
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(ours, again)
    before, after = (read_adapter(tmp_path / name) for name in ("in", "out"))
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    llama.to_hf(tmp_path / "adapted", tmp_path / "merged")
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))


@pytest.mark.parametrize("variant", ["tied", "two_tables"])
def test_new_tokens_learn_as_in_peft(variant, tmp_path):
    """The loss and the change of every trained weight in one step of gradient descent."""
    family, indices = NEW_TOKENS[variant]
    base = reference(dataclasses.replace(CONFIG, **FAMILIES[family]))
    base.save_pretrained(tmp_path / "base")
    llama.from_hf(tmp_path / "base", tmp_path / "run", "float32")
    fields = {"target_modules": "all-linear", "trainable_token_indices": indices}
    model = with_random_adapter(base, **fields)
    before = load_peft(model, tmp_path / "before", tmp_path / "run")
    batch = random_batch([12, 9])
    rng = np.random.default_rng(0)
    for key in ("decoder_input_tokens", "decoder_target_tokens"):
        new = rng.random(batch[key].shape) < 0.3
        batch[key] = np.where(new, rng.integers(140, 150, new.shape), batch[key])
    weights = torch.tensor(batch["decoder_loss_weights"]).flatten()
    logits = model(torch.tensor(batch["decoder_input_tokens"])).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        torch.tensor(batch["decoder_target_tokens"], dtype=torch.long).flatten(),
        reduction="none",
    )
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.5).step()
    expected = trained_weights(load_peft(model, tmp_path / "after", tmp_path / "run"))

    graphdef, params, frozen = nnx.split(before, TRAINABLE["lora"], ...)
    optimizer = optax.sgd(0.5)
    options = {"accumulation": 1, "loss_columns": 64, "seed": 0}
    step = make_train_step(graphdef, optimizer, unit_ids=range(140, 150), **options)
    state, metrics = jax.jit(step)(TrainState.create(params, optimizer), frozen, batch)
    total, weight = metrics["loss"]
    np.testing.assert_allclose(total / weight, loss.item(), rtol=1e-5)
    assert {"new_embeddings", "layers.mlp.up_proj.lora_a"} <= expected.keys()
    for name, start in trained_weights(before).items():
        change = checkpoints.flatten(state.params)[name] - start
        tolerance = 1e-4 * np.abs(expected[name] - start).max()
        np.testing.assert_allclose(change, expected[name] - start, atol=tolerance)


def load_peft(model, folder, base):
    """Our model with the adapter of PEFT's `model`, which `folder` gets."""
    model.save_pretrained(folder / "peft")
    adapters.from_peft(folder / "peft", folder / "run", base)
    return checkpoints.load_model(folder / "run", build_llama)


def trained_weights(model) -> dict:
    return checkpoints.flatten(nnx.state(model, nnx.LoRAParam))


def read_adapter(folder) -> dict:
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def test_rslora_survives_the_round_trip(theirs, run, tmp_path):
    trained(theirs, use_rslora=True, r=8, lora_alpha=16).save_pretrained(tmp_path / "in")
    adapters.from_peft(tmp_path / "in", tmp_path / "run", run)
    adapters.to_peft(tmp_path / "run", tmp_path / "out", "base")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["use_rslora"]) == (8, 16, True)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_init_that_changed_the_base(init, rslora, theirs, run, tmp_path):
    """Refused as saved; exact after PEFT's conversion to plain LoRA."""
    torch.manual_seed(1)
    model = reference(SMALL)
    model.load_state_dict(theirs.state_dict())
    config = peft.LoraConfig(**PLAIN, init_lora_weights=init, use_rslora=rslora)
    model = peft.get_peft_model(model, config).eval()
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(UserError, match=f"{init}.*path_initial_model_for_weight_conversion"):
        adapters.from_peft(tmp_path / "changed", tmp_path / "out", run)

    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    adapters.from_peft(tmp_path / "plain", tmp_path / "out", run)
    assert_same_logits(checkpoints.load_model(tmp_path / "out", build_llama), model, rtol=1e-3)


def add_tensor(name):
    def add(folder):
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file(tensors | {name: torch.ones(4, 48)}, path)

    return add


def scalar_tensor(folder):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {name: torch.tensor(1.0)}, path)


def integer_keys(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({5: torch.ones(2)}, folder / "adapter_model.bin")


def set_field(**fields):
    return lambda folder: change_json(folder / "adapter_config.json", **fields)


MERGE = r"merge_and_unload\(\)\.save_pretrained\(FOLDER\)"
REFUSED = {
    "corda": (set_field(init_lora_weights="corda"), "path_initial_model_for_weight_conversion"),
    "lora_ga": (set_field(init_lora_weights="lora_ga"), "path_initial_model_for_weight_conversion"),
    "loftq": (set_field(init_lora_weights="loftq"), MERGE),
    "new_init": (set_field(init_lora_weights="of_next_year"), f"of_next_year.*{MERGE}"),
    "dora": (set_field(use_dora=True), f"use_dora.*{MERGE}"),
    "modules_to_save": (set_field(modules_to_save=["lm_head"]), f"modules_to_save.*{MERGE}"),
    "saved_module": (add_tensor("base_model.model.lm_head.weight"), f"lm_head.*{MERGE}"),
    "other_module": (
        add_tensor("base_model.model.model.embed_tokens.lora_A.weight"),
        f"embed_tokens.*{MERGE}",
    ),
    "trained_tokens": (set_field(trainable_token_indices=[1]), f"trainable_token_ind.*{MERGE}"),
    "other_tables": (
        set_field(trainable_token_indices={"lm_head": [3005]}),
        f"trainable_token_ind.*{MERGE}",
    ),
    "lost_rows": (set_field(trainable_token_indices=[3005]), "lacks .*trainable_tokens_delta"),
    "biases": (set_field(bias="all"), f"biases.*{MERGE}"),
    "other_method": (set_field(peft_type="IA3"), f"IA3.*{MERGE}"),
    "by_text": (set_field(alora_invocation_tokens=[5]), "alora.*train a plain LoRA"),
    "scalar": (scalar_tensor, r"q_proj.lora_A.weight has shape \(\); expected a matrix"),
    "integer_keys": (integer_keys, "holds other objects than named tensors"),
    "zero_alpha": (set_field(lora_alpha=0), "adapter_config.json: LoRA alpha 0 must be above 0"),
    "all_dropout": (set_field(lora_dropout=1.0), r"adapter_config.json: LoRA dropout 1.0 must be"),
    "no_alpha": (set_field(lora_alpha=None), "has no 'lora_alpha'"),
    "another_rank": (
        set_field(r=8),
        r"adapter_config.json gives model\S+q_proj rank 8, but its weights have 4: take both files",
    ),
    "another_rank_in_a_pattern": (
        set_field(rank_pattern={"v_proj": 3}),
        r"gives model\S+v_proj rank 3, but its weights have 4",
    ),
    "one_layer": (
        set_field(layers_to_transform=[0]),
        r"leaves model.layers.1\S+_proj without an adapter .*, but the weights have one: take both",
    ),
    "layer_as_number": (
        set_field(layers_to_transform=1, layers_pattern="layers"),
        r"leaves model.layers.0\S+_proj without",
    ),
    "fewer_modules": (set_field(target_modules=["q_proj"]), r"leaves model\S+v_proj without"),
    "excluded_module": (set_field(exclude_modules=["q_proj"]), r"leaves model\S+q_proj without"),
    "excluded_by_regex": (set_field(exclude_modules=".*v_proj"), r"leaves model\S+v_proj without"),
    "more_modules": (
        set_field(target_modules=["q_proj", "v_proj", "up_proj"]),
        r"gives model.layers.0.mlp.up_proj an adapter, but the weights have none: take both",
    ),
    "regex": (set_field(target_modules="(q"), r"has '\(q' among target_modules.*correct it"),
    "two_alphas": (set_field(alpha_pattern={"q_proj": 3}), f"4 and 3, 4 and 8.*{MERGE}"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_other_adapters_are_refused_with_a_remedy(change, message, adapter, run, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(UserError, match=message) as caught:
        adapters.from_peft(tmp_path / "in", tmp_path / "out", run)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


WRONG_FIELDS = {
    "lora_alpha": ("16", None, [1], True, math.inf),
    "lora_dropout": (None, "0.1", [], True),
    "use_rslora": ("false", None, 1),
    "r": ("4", 4.0, [4], True),
    "rank_pattern": (["q_proj"], "q_proj", {"q_proj(": 4}, {"*": 4}, {"q_proj": "4"}),
    "alpha_pattern": (["q_proj"], "q_proj", {"q_proj(": 3}, {"*": 3}, {"q_proj": "8"}),
    "target_modules": (5, [1], {"q_proj": True}),
    "exclude_modules": (5, [1]),
    "layers_to_transform": ("0", [0.5], True),
    "layers_pattern": (5, [1]),
    "trainable_token_indices": (5, "abc", ["a"], [599.0], {"embed_tokens": 5}),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_fields_name_file_and_field(name, adapter, run, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "in")
    path = tmp_path / "in" / "adapter_config.json"
    good = json.loads(path.read_text())
    for value in WRONG_FIELDS[name]:
        path.write_text(json.dumps(good | {name: value}))
        with pytest.raises(UserError, match=rf"^{path} has .*{name}.*; expected .*: correct it"):
            adapters.from_peft(tmp_path / "in", tmp_path / "out", run)


def test_an_adapter_on_a_run_with_an_adapter(adapter, adapter_run, tmp_path):
    """Refused; the way of the message gives the sum of both."""
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"com has an adapter of its own.* to_hf .*com MERGED --m"):
        convert_llama.main(["from_hf", str(adapter[0]), out, f"--base={adapter_run}"])
    merged, base = str(tmp_path / "merged"), str(tmp_path / "base")
    convert_llama.main(["to_hf", str(adapter_run), merged, "--merge"])
    convert_llama.main(["from_hf", merged, base])
    convert_llama.main(["from_hf", str(adapter[0]), out, f"--base={base}"])
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    expected = peft.PeftModel.from_pretrained(model, adapter[0]).eval()
    ours = checkpoints.load_model(out, build_llama)
    assert_same_logits(with_config(ours, dtype="float32"), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers_to_transform": [1]}, "q_proj of layer 0 without an adapter.*merge_and_unload"),
        ({"rank_pattern": {"v_proj": 2}}, r"2 and 8, 4 and 8.*merge_and_unload"),
    ],
)
def test_adapters_that_differ_between_layers_are_refused(fields, message, theirs, run, tmp_path):
    trained(theirs, **fields).save_pretrained(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        adapters.from_peft(tmp_path / "in", tmp_path / "out", run)


def test_an_adapter_for_another_base_is_refused(adapter, run, tmp_path):
    folder = tmp_path / "adapter"
    model = peft.get_peft_model(
        reference(dataclasses.replace(SMALL, hidden_size=32)),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"not fit the base .*shape \(4, 32\); expected \(4, 48"):
        adapters.from_peft(folder, tmp_path / "out", run)
    for command, message in [
        (["from_hf", str(adapter[0]), str(tmp_path / "out")], "name the run of its base by --base"),
        (["to_hf", str(run), str(tmp_path / "out"), "--base=x"], "has no adapter"),
        (
            ["to_hf", str(run), str(tmp_path / "out"), "--merge"],
            "has no adapter: leave out --merge",
        ),
        (["from_hf", str(run), str(tmp_path / "out"), f"--base={run}"], "leave out --base"),
        (
            ["from_hf", str(adapter[0]), str(tmp_path / "out"), f"--base={run}", "--dtype=float32"],
            "an adapter, which keeps its dtype",
        ),
        (
            [
                *("from_hf", str(adapter[0]), str(tmp_path / "out")),
                *(f"--base={run}", "--compute_dtype=float32"),
            ],
            "leave out --dtype and --compute_dtype",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            convert_llama.main(command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_whose_base_has_moved(adapter, adapter_run, run, tmp_path):
    """The remedy of the message works."""
    shutil.copytree(run, tmp_path / "cm")
    adapters.from_peft(adapter[0], tmp_path / "com", tmp_path / "cm")
    (tmp_path / "cm").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"was trained on .*cm.* which is gone: .*from_hf OUT"):
        convert_llama.main(["to_hf", str(tmp_path / "com"), str(tmp_path / "out"), "--merge"])
    with pytest.raises(UserError, match="keeps its dtype: leave out --dtype"):
        command = ["to_hf", str(tmp_path / "com"), str(tmp_path / "out"), "--base=name"]
        convert_llama.main([*command, "--dtype=float16"])
    convert_llama.main(["to_hf", str(tmp_path / "com"), str(tmp_path / "out"), "--base=name"])
    convert_llama.main(
        ["from_hf", str(tmp_path / "out"), str(tmp_path / "again"), f"--base={tmp_path / 'moved'}"]
    )
    assert_same_logits(checkpoints.load_model(tmp_path / "again", build_llama), adapter[1])


def test_a_merge_that_overflows_is_refused_with_a_remedy_that_works(theirs, run, tmp_path):
    model = trained(theirs)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(1000)
    model.save_pretrained(tmp_path / "in")
    adapters.from_peft(tmp_path / "in", tmp_path / "run", run)
    with pytest.raises(UserError, match=r"self_attn.q_proj.kernel holds .* too large for float16"):
        llama.to_hf(tmp_path / "run", tmp_path / "out")
    llama.to_hf(tmp_path / "run", tmp_path / "out", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(checkpoints.load_model(tmp_path / "run", build_llama), merged)
