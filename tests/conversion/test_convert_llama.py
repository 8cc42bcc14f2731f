"""LLaMA in and out: against transformers and peft themselves, on folders of the released layout."""

import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_jax import checkpoints
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.conversion import tokenizer_format
from speechgpt_jax.decoding.conversation import build_llama
from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.layers import LinearRopeScaling, Llama3RopeScaling, LoraConfig
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.prompts import ROLE_TOKENS
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from tests.models.hugging_face import CONFIG, reference
from tools import convert_llama

GOLDEN = Path(__file__).parent.parent / "testdata" / "golden"
CASES = json.loads((GOLDEN / "llama_tokenizer.json").read_text())["cases"]
TOKENIZER = Tokenizer.from_pretrained(GOLDEN)
# The last rows are padding of ours: 3006 is no multiple of 128.
SMALL = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size)
PROMPTS = [
    "This is a system prompt.\n[Human]: what is a cat?<eoh> [SpeechGPT]:",
    "[Human]: <sosp><5><71><9><999><0><eosp><eoh>. [SpeechGPT]:",
]


def write_released(folder: Path, model, dtype=torch.float16) -> Path:
    """The layout of SpeechGPT-7B-ma and -cm: two .bin shards, index, slow tokenizer."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = {name: x.to(dtype).clone() for name, x in model.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    names = list(tensors)
    half = len(names) // 2
    shards = {
        "pytorch_model-00001-of-00002.bin": names[:half],
        "pytorch_model-00002-of-00002.bin": names[half:],
    }
    for shard, members in shards.items():
        torch.save({name: tensors[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs():
    model = reference(SMALL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


@pytest.fixture(scope="module")
def released(tmp_path_factory, theirs):
    return write_released(tmp_path_factory.mktemp("released") / "SpeechGPT-cm", theirs)


@pytest.fixture(scope="module")
def run(tmp_path_factory, released):
    """The released folder as a run of ours."""
    out = tmp_path_factory.mktemp("runs") / "cm"
    convert_llama.from_hf(released, out, "float32")
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run):
    out = tmp_path_factory.mktemp("exported") / "cm"
    convert_llama.to_hf(run, out)
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, theirs):
    """A PEFT folder on top of the released one: SpeechGPT-7B-com."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = reference(SMALL)
    model.load_state_dict(theirs.state_dict())
    model = peft.get_peft_model(model, config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("released") / "SpeechGPT-com"
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def adapter_run(run, adapter):
    out = run.parent / "com"
    convert_llama.adapter_from_hf(adapter[0], out, run)
    return out


@nnx.jit
def our_logits(model, tokens):
    return model.unembed(model(tokens))


def assert_same_logits(ours: Llama, model, rtol=1e-4):
    tokens = np.random.default_rng(0).integers(3, ours.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    logits = np.asarray(our_logits(ours, jnp.asarray(tokens)))[..., : ours.config.vocab_size]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < rtol


def test_the_released_layout_gives_the_logits_of_transformers(run, theirs):
    ours = checkpoints.load_model(run, build_llama)
    assert ours.config == dataclasses.replace(SMALL, dtype="float32", scan_layers=True)
    assert_same_logits(ours, theirs)
    assert Tokenizer.from_pretrained(run / "tokenizer").added_tokens == TOKENIZER.added_tokens


def test_greedy_generation_is_that_of_transformers(run, exported):
    """200 tokens, theirs by the exported tokenizer and ours by our own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model.generate(
            **batch, do_sample=False, max_new_tokens=200, min_new_tokens=200
        ).numpy()[:, -200:]
    ours = checkpoints.load_model(run, build_llama)
    prompts = [[TOKENIZER.bos_id, *TOKENIZER.encode(prompt)] for prompt in PROMPTS]
    tokens, lengths = generate(
        ours,
        prompts,
        max_new_tokens=200,
        min_new_tokens=200,
        stop_ids=[TOKENIZER.eos_id],
        sampling=GREEDY,
    )
    np.testing.assert_array_equal(tokens, theirs)
    assert lengths.tolist() == [200, 200]


VARIANTS = {
    "tied_llama3": {
        "tie_embeddings": True,
        "rope_theta": 500_000.0,
        "rope_scaling": Llama3RopeScaling(8.0, 1.0, 4.0, 32),
    },
    "linear": {"rope_scaling": LinearRopeScaling(2.0)},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_llama_family(changes, tmp_path):
    """Sharded safetensors as transformers writes them, in and out."""
    config = dataclasses.replace(CONFIG, **changes)
    model = reference(config)
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").exists()
    convert_llama.from_hf(tmp_path / "in", tmp_path / "run", "float32")
    ours = checkpoints.load_model(tmp_path / "run", build_llama)
    assert ours.config == dataclasses.replace(config, scan_layers=True)
    assert_same_logits(ours, model)
    convert_llama.to_hf(tmp_path / "run", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(ours, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip_is_bit_exact(dtype, tmp_path, monkeypatch):
    reference(CONFIG).to(dtype).save_pretrained(tmp_path / "in", max_shard_size="50KB")
    convert_llama.from_hf(tmp_path / "in", tmp_path / "run")
    monkeypatch.setattr(convert_llama, "SHARD_BYTES", 50_000)
    convert_llama.to_hf(tmp_path / "run", tmp_path / "out")
    before, after = (read_tensors(tmp_path / name) for name in ("in", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == dtype
        assert torch.equal(after[name], tensor), name
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


def read_tensors(folder: Path) -> dict:
    files = sorted(folder.glob("*.safetensors"))
    return {n: x for file in files for n, x in safetensors.torch.load_file(file).items()}


def test_a_trained_run_is_exported_with_padding_dropped_and_a_card(tmp_path):
    model = Llama(dataclasses.replace(SMALL, dtype="float32"), rngs=nnx.Rngs(0))
    config = "train.steps = 3\ntrain.start_from = 'gone'\nload_host_batches.mixture = 'my_mixture'"
    metadata = {"config": config, "model": dataclasses.asdict(model.config)}
    store = Checkpoints(tmp_path / "stage2", metadata=metadata)
    store.save(3, {"params": checkpoints.flatten(nnx.state(model))})
    store.close()
    TOKENIZER.save_pretrained(tmp_path / "stage2" / "tokenizer")
    (tmp_path / "stage2" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.25}\n')
    figures = {"test": {"my_asr": {"wer": 0.123}}}
    (tmp_path / "stage2" / "evaluation.json").write_text(json.dumps(figures))

    convert_llama.to_hf(tmp_path / "stage2", tmp_path / "out", "bfloat16", context_length=512)

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


@pytest.fixture(scope="module")
def fast(exported):
    return transformers.AutoTokenizer.from_pretrained(exported)


def test_the_exported_tokenizer_gives_the_golden_ids(fast):
    assert len(CASES) > 400
    for case in CASES:
        assert fast(case["text"]).input_ids == case["ids"], case["text"]
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (1, 2, 0)
    assert len(fast) == TOKENIZER.vocab_size


# U+001C..U+001F beside an added token is the one difference; surrogates are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f"))
PARTS = st.one_of(TEXT, st.sampled_from([" ", "\n", "<s>", "<5>", "<999>", *ROLE_TOKENS]))


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=12).map("".join))
def test_the_exported_tokenizer_gives_our_ids(fast, text):
    assert fast(text, add_special_tokens=False).input_ids == TOKENIZER.encode(text)


def test_the_demo_tokenizer_is_exported_too():
    demo = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    fast = tokenizer_format.build(demo)
    for text in [*PROMPTS, "what is two plus three? <sosp><17><103><eosp>"]:
        assert fast.encode(text, add_special_tokens=False).ids == demo.encode(text)


def test_an_adapter_comes_in_on_its_base(adapter, adapter_run):
    ours = checkpoints.load_model(adapter_run, build_llama)
    assert ours.config.lora == LoraConfig(4, 8, 0.0, ("q_proj", "v_proj"))
    assert_same_logits(ours, adapter[1])
    size = sum(f.stat().st_size for f in (adapter_run / "checkpoints").rglob("*") if f.is_file())
    assert size < 100_000


def test_an_adapter_goes_out_alone_and_merged(adapter, adapter_run, exported, tmp_path):
    convert_llama.adapter_to_hf(adapter_run, tmp_path / "alone", str(exported))
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float32)
    ours = checkpoints.load_model(adapter_run, build_llama)
    assert_same_logits(ours, alone)
    before, after = (
        safetensors.numpy.load_file(folder / "adapter_model.safetensors")
        for folder in (adapter[0], tmp_path / "alone")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])

    convert_llama.to_hf(adapter_run, tmp_path / "merged", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    # The base is stored in float16, and so is its sum with the adapter.
    assert_same_logits(ours, merged, rtol=1e-2)
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "| cm | not known |" in card and "| com | not known |" in card


def spoil_json(folder: Path, name: str, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/speechgpt_jax_was_here",)


def put_code(folder):
    torch.save({"w": Evil()}, folder / "pytorch_model-00001-of-00002.bin")


BAD = [
    (lose_a_shard, r"pytorch_model-00002-of-00002.bin is missing"),
    (cut_a_shard, r"00001-of-00002.bin is missing, damaged or no PyTorch file"),
    (cut_the_file, r"model.safetensors is damaged"),
    (put_code, r"holds more than weights: it would run \w+.system: refused"),
    (change_tensors(put_nan), r"model.layers.1.mlp.up_proj.weight holds NaN"),
    (change_tensors(put_wrong_shape), r"norm.weight has shape \(47,\); expected \(48,\)"),
    (
        change_tensors(lambda t: t.update({"model.layers.0.extra": torch.ones(1)})),
        r"has an unexpected model.layers.0.extra",
    ),
    (change_tensors(lambda t: t.pop("lm_head.weight")), r"lacks lm_head.weight"),
    (lambda f: spoil_json(f, "config.json", num_hidden_layers=1), r"unexpected model.layers.1"),
    (
        lambda f: spoil_json(f, "config.json", vocab_size=3005),
        r"3006 ids, but config.json only 3005",
    ),
    (lambda f: spoil_json(f, "config.json", hidden_act="gelu"), r"hidden_act 'gelu'"),
    (lambda f: spoil_json(f, "config.json", tie_word_embeddings=True), r"lm_head of its own"),
    (lambda f: (f / "config.json").write_text("{"), r"config.json is missing or no JSON"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_folders_give_one_line_and_no_output(released, tmp_path, damage, message):
    shutil.copytree(released, tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(ValueError, match=message) as caught:
        convert_llama.from_hf(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert not Path("/tmp/speechgpt_jax_was_here").exists()


def test_an_adapter_for_another_base_is_refused(adapter, run, tmp_path):
    folder = tmp_path / "adapter"
    model = peft.get_peft_model(
        reference(dataclasses.replace(SMALL, hidden_size=32)),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"not fit the base .*shape \(4, 32\); expected \(4, 48"):
        convert_llama.adapter_from_hf(folder, tmp_path / "out", run)
    with pytest.raises(SystemExit, match="is an adapter: name the run of its base by --base"):
        convert_llama.main(["from_hf", str(adapter[0]), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="has no adapter"):
        convert_llama.main(["to_hf", str(run), str(tmp_path / "out"), "--base=x"])
    with pytest.raises(SystemExit, match="exists; name another folder"):
        convert_llama.main(["to_hf", str(run), str(folder)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_no_space_left_is_one_line(released, run, tmp_path, capfd):
    """A file may not grow beyond 100 kB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for command in (["from_hf", str(released)], ["to_hf", str(run)]):
            with pytest.raises(SystemExit, match=r"^Error: .*can't be written[^\n]*$"):
                convert_llama.main([*command, str(tmp_path / "out")])
            assert not list(tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err
