"""Damaged folders and wrong options of the conversion of LLaMA: one line, and no output."""

import math
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from speechgpt_jax.conversion import llama, llama_format, weights
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields
from tests.conversion.released import LLAMA3_ROPE, change_json
from tests.models.hugging_face import CONFIG, reference
from tools import convert_llama

pytestmark = pytest.mark.slow


def lose_a_shard(folder):
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def cut_a_shard(folder):
    path = folder / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(path.read_bytes()[:5000])


def change_tensors(change):
    """Rewrites the weights as one safetensors file after `change(tensors)`."""

    def damage(folder):
        tensors = {}
        for shard in sorted(folder.glob("*.bin")):
            tensors |= torch.load(shard, weights_only=True)
            shard.unlink()
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return damage


def cut_the_file(folder):
    change_tensors(lambda tensors: None)(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def put_nan(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def put_wrong_shape(tensors):
    tensors["model.norm.weight"] = torch.ones(47)


def put_dtype(dtype):
    def put(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"] = (
            tensors["model.layers.0.self_attn.q_proj.weight"].float().clamp(-1, 1).to(dtype)
        )

    return put


def put_prefix(tensors):
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def put_integer_keys(folder):
    torch.save({5: torch.ones(2)}, folder / "pytorch_model-00001-of-00002.bin")


def put_repeated_numbers(folder):
    repeated = {"lm_head.weight": torch.ones(1, 1).expand(2**20, 2**14)}
    torch.save(repeated, folder / "pytorch_model-00001-of-00002.bin")


def put_gptq(tensors):
    name = "model.layers.1.mlp.up_proj."
    del tensors[name + "weight"]
    tensors[name + "qweight"] = torch.ones(6, 80, dtype=torch.int32)
    tensors[name + "scales"] = torch.ones(1, 80)


def put_bitsandbytes(tensors):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.ones(80 * 48 // 2, 1, dtype=torch.uint8)
    tensors[name + ".absmax"] = torch.ones(60)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/speechgpt_jax_was_here",)


def put_code(folder):
    torch.save({"w": Evil()}, folder / "pytorch_model-00001-of-00002.bin")


QUANT = r"is part of quantised weights; .*dequantize"
BAD = [
    (lose_a_shard, r"pytorch_model-00002-of-00002.bin is missing"),
    (cut_a_shard, r"00001-of-00002.bin is damaged or no PyTorch file"),
    (cut_the_file, r"model.safetensors is damaged"),
    (put_code, r"holds more than weights: it would run \w+.system, which is refused"),
    (change_tensors(put_nan), r"model.layers.1.mlp.up_proj.weight holds NaN"),
    (change_tensors(put_wrong_shape), r"norm.weight has shape \(47,\); expected \(48,\)"),
    (
        change_tensors(lambda t: t.update({"model.layers.0.extra": torch.ones(1)})),
        r"has an unexpected model.layers.0.extra",
    ),
    (change_tensors(lambda t: t.pop("lm_head.weight")), r"lacks lm_head.weight"),
    *(
        (
            lambda f, n=layers: change_json(f / "config.json", num_hidden_layers=n),
            rf"has the weights of 2 layers, its config says {layers}: take both",
        )
        for layers in (1, 3, 10**9)
    ),
    (
        change_tensors(put_prefix),
        r"has no weights called model.layers.\*; the first is called module.lm_head.weight: rename",
    ),
    *(
        (
            lambda f, m=weight_map: change_json(f / "pytorch_model.bin.index.json", weight_map=m),
            r"index.json has (no 'weight_map'|weight_map .*; expected a mapping)",
        )
        for weight_map in (["a"], None, {"lm_head.weight": 5}, {"lm_head.weight": None})
    ),
    (put_repeated_numbers, r"lm_head.weight of shape \(1048576, 16384\) repeats fewer numbers"),
    (put_integer_keys, r"holds other objects than named tensors"),
    *(
        (
            lambda f, t=token: change_json(f / "tokenizer_config.json", pad_token=t),
            r"tokenizer_config.json.* (has no 'content'|has pad_token .*; expected a string)",
        )
        for token in ({}, ["<pad>"], 5)
    ),
    *(
        (
            lambda f, i=id_: change_json(f / "generation_config.json", eos_token_id=i),
            r"generation_config.json.*eos_token_id",
        )
        for id_ in ("x", 10**9, [2, -1])
    ),
    *(
        (
            lambda f, c=changes: change_json(f / "generation_config.json", **c),
            rf"generation_config.json.*{next(iter(changes))}",
        )
        for changes in (
            {"temperature": math.nan},
            {"top_p": 7},
            {"top_k": "50"},
            {"repetition_penalty": 0},
            {"max_length": -5},
            {"max_new_tokens": 0},
        )
    ),
    (
        lambda f: change_json(f / "tokenizer_config.json", model_max_length="x"),
        r"tokenizer_config.json has model_max_length .x.; expected a finite number or null",
    ),
    (
        lambda f: change_json(f / "config.json", vocab_size=3005),
        r"3006 ids, .<eos>. among them, but the embedding only 3005",
    ),
    (lambda f: change_json(f / "config.json", hidden_act="gelu"), r"hidden_act 'gelu'"),
    (lambda f: change_json(f / "config.json", tie_word_embeddings=True), r"lm_head of its own"),
    (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON"),
    *(
        (change_tensors(put_dtype(dtype)), rf"layers.0.self_attn.q_proj.weight \({name}\) {QUANT}")
        for name, dtype in {
            "I8": torch.int8,
            "U8": torch.uint8,
            "F8_E4M3": torch.float8_e4m3fn,
            "F8_E5M2": torch.float8_e5m2,
        }.items()
    ),
    *(
        (change_tensors(put_dtype(dtype)), rf"q_proj.weight is {name}; expected one of float64")
        for name, dtype in {"C64": torch.complex64, "BOOL": torch.bool}.items()
    ),
    (change_tensors(put_gptq), rf"layers.1.mlp.up_proj.qweight \(I32\) {QUANT}"),
    (change_tensors(put_bitsandbytes), rf"up_proj.weight(.absmax)? \(\w+\) {QUANT}"),
    *(
        (
            lambda f, q={"quant_method": method}: change_json(
                f / "config.json", quantization_config=q
            ),
            rf"config.json says that the weights are quantised \({method}\): .*dequantize",
        )
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors")
    ),
    (
        lambda f: change_json(
            f / "config.json", rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 1e4}
        ),
        r"rotates 0.5 of each head",
    ),
    (
        lambda f: change_json(
            f / "config.json", rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}
        ),
        r"config.json: rope_parameters has no 'factor'",
    ),
    (
        lambda f: change_json(
            f / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}
        ),
        r"scales RoPE by 'yarn'; only linear and llama3",
    ),
    (
        lambda f: change_json(
            f / "config.json", rope_parameters={"full_attention": {"rope_theta": 1e4}}
        ),
        r"rope_parameters differs by kind of layer; only one RoPE",
    ),
    (lambda f: change_json(f / "config.json", partial_rotary_factor=0.25), r"rotates 0.25 of each"),
    (
        lambda f: change_json(f / "config.json", model_type="gemma3_text"),
        r"model_type 'gemma3_text'; only llama, mistral, qwen2, qwen3 are",
    ),
    (lambda f: change_json(f / "config.json", attention_bias=True), r"attention_bias True; only"),
    (lambda f: change_json(f / "config.json", model_type="qwen2"), r"lacks .*q?k_proj.bias"),
    (
        lambda f: change_json(
            f / "config.json",
            model_type="mistral",
            sliding_window=512,
            max_position_embeddings=2048,
        ),
        r"window of 512 tokens and a context of 2048; .*set max_position_embeddings to 512",
    ),
    (
        lambda f: change_json(
            f / "config.json",
            model_type="qwen2",
            use_sliding_window=True,
            max_window_layers=1,
            sliding_window=512,
            max_position_embeddings=2048,
        ),
        r"window of 512 tokens and a context of 2048",
    ),
    (shutil.rmtree, r"is not a folder; .*hf download"),
    (lambda f: (f / "config.json").unlink(), r"config.json can't be read"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_folders_give_one_line_and_no_output(released, tmp_path, damage, message):
    shutil.copytree(released, tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=message) as caught:
        llama.from_hf(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name != "in"]
    assert not Path("/tmp/speechgpt_jax_was_here").exists()


def test_a_tensor_in_two_shards_is_that_of_the_index(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "in")
    first, second = sorted(folder.glob("*.bin"))
    tensors = torch.load(first, weights_only=True)
    name = "model.embed_tokens.weight"
    torch.save(torch.load(second, weights_only=True) | {name: 5 * tensors[name]}, second)
    read = weights.from_folder(folder, ["pytorch_model.bin"]).read(name)
    np.testing.assert_array_equal(read, tensors[name].numpy())


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 2048},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 512},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2},
        {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
    ],
)
def test_windows_that_hide_nothing_are_accepted(fields):
    given = reference(CONFIG).config.to_dict() | {"max_position_embeddings": 2048} | fields
    llama_format.config_from(Fields(given, "config.json"), "float32")


NO_SIZES = ("600", None, 600.0, True, [600], {}, 0, -1)
WRONG_FIELDS = {
    **dict.fromkeys(
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"],
        (*NO_SIZES, 10**30),
    ),
    "num_attention_heads": (*NO_SIZES, 10**30),
    "max_position_embeddings": NO_SIZES,
    "num_key_value_heads": ("2", 2.0, [2], -1),
    "head_dim": ("16", 16.0, [16], -2),
    "rms_norm_eps": ("1e-5", None, [], True, -1.0, math.inf),
    "tie_word_embeddings": ("false", None, 0),
    "quantization_config": ("int4", [4]),
    "model_type": (["llama"], None, 5),
    "rope_theta": (None, "abc", 0, math.nan),
    "rope_scaling": (
        *("linear", [2], {"rope_type": ["linear"]}),
        *({"rope_type": "linear", "factor": factor} for factor in (0, -1, "2", None, math.inf)),
        {"rope_type": "linear"},
        LLAMA3_ROPE | {"low_freq_factor": 4.0},
        LLAMA3_ROPE | {"low_freq_factor": 8.0},
        LLAMA3_ROPE | {"original_max_position_embeddings": None},
        LLAMA3_ROPE | {"rope_theta": None},
        {"rope_theta": 1e4, "partial_rotary_factor": "1"},
    ),
    "bos_token_id": ("x", 150, -1, [150]),
    "eos_token_id": ("x", 10**9, -1, [2, 150], [None]),
    "pad_token_id": ("x", [0]),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_fields_of_a_config_name_file_and_field(name):
    """Also those that are only kept, since they are exported again."""
    good = reference(CONFIG).config.to_dict() | {"rope_parameters": None, "rope_theta": 1e4}
    llama_format.config_from(Fields(good, "config.json"), "float32")
    for value in WRONG_FIELDS[name]:
        field = "RoPE|rope" if name == "rope_scaling" else name
        with pytest.raises(UserError, match=f"^config.json.*({field})"):
            llama_format.config_from(Fields(good | {name: value}, "config.json"), "float32")


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "mistral", "sliding_window": "64"},
        {"model_type": "mistral", "sliding_window": -1},
        {"model_type": "mistral", "sliding_window": 0},
        {"model_type": "qwen2", "use_sliding_window": "false"},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None},
        {"model_type": "qwen3", "use_sliding_window": True, "layer_types": "full_attention"},
    ],
)
def test_wrong_windows_name_the_field(fields):
    good = reference(CONFIG).config.to_dict() | {"layer_types": None}
    with pytest.raises(UserError, match=f"^config.json.*{[*fields][-1]}"):
        llama_format.config_from(Fields(good | fields, "config.json"), "float32")


def test_a_full_disk_is_a_user_error(released, run, tmp_path, capfd):
    """Limits files to 100 kB, which fails as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for command in (["from_hf", str(released)], ["to_hf", str(run)]):
            with pytest.raises(UserError, match=r"^[^\n]*can't be written[^\n]*$"):
                convert_llama.main([*command, str(tmp_path / "out")])
            assert not list(tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err


def test_wrong_folders_and_flags_are_user_errors(run, released, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "saving" / "checkpoints" / "3.orbax-checkpoint-tmp-1").mkdir(parents=True)
    out = str(tmp_path / "out")
    for command, message in [
        (["to_hf", str(tmp_path / "nothing"), out], "no checkpoint in .*nothing"),
        (["to_hf", str(tmp_path / "file"), out], "no checkpoint in .*file"),
        (["to_hf", str(tmp_path / "saving"), out], "no checkpoint in .*saving"),
        (["to_hf", str(run), str(tmp_path / "file")], "file is a file; name another folder"),
        (["to_hf", str(run), str(tmp_path)], "exists; name another folder"),
        (["from_hf", str(released), str(tmp_path)], "exists; name another folder"),
        (["to_hf", str(run), str(tmp_path / "file" / "out")], "file is a file; name another"),
        (["from_hf", "fnlp/SpeechGPT-7B-cm", out], "hf download"),
        (["from_hf", "fnlp/SpeechGPT-7B-com", out, f"--base={run}"], "hf download"),
        (["from_hf", str(released), out, f"--base={run}"], "leave out --base"),
        (["from_hf", str(released), "zz://bucket/run"], "'zz://' is no file system"),
        (["to_hf", "zz://bucket/run", out], "'zz://' is no file system"),
        (["to_hf", str(run), out, "--context_length=0"], "--context_length: expected"),
        (["to_hf", str(run), out, "--base="], "--base: expected a text that is not blank"),
        (["to_hf", str(run), out, "--dtype=float8"], "--dtype: invalid choice"),
        ([], "required: command"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            convert_llama.main(command)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "saving"]
