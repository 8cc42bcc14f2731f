"""GGUF files, compared with transformers' reading of the same file."""

import dataclasses
import random
import re
import sys

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from gguf.scripts import gguf_set_metadata
from transformers.integrations.gguf.dequant import dequantize

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion import llama
from speechgpt_jax.conversion.gguf import GgufFile
from speechgpt_jax.decoding.loading import build_llama
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import Llama3RopeScaling
from speechgpt_jax.tokenizer import SentencePieceTokenizer, Tokenizer
from tests.conversion import gguf_files
from tests.conversion.gguf_files import CONTROL, NORMAL, USER_DEFINED
from tests.conversion.released import TOKENIZER, assert_same_logits
from tests.models.hugging_face import CONFIG, reference
from tests.tokenizer.byte_level import GPT2, KINDS, LLAMA3, QWEN, mix
from tests.tokenizer.byte_level import write as write_byte_level
from tools import convert_llama

pytestmark = pytest.mark.slow

PRE = {GPT2: "gpt-2", QWEN: "qwen2", LLAMA3: "llama-bpe"}
# Rows of 64 and 96 numbers are whole blocks of 32.
SMALL = dataclasses.replace(
    CONFIG, vocab_size=660, hidden_size=64, intermediate_size=96, rope_theta=1e5
)
FAMILIES = {
    "Llama": SMALL,
    "Qwen2": dataclasses.replace(SMALL, qkv_bias=True, tie_embeddings=True, rms_norm_eps=1e-6),
    # The only size of heads with which transformers reads this family from GGUF.
    "Qwen3": dataclasses.replace(SMALL, qk_norm=True, rms_norm_eps=1e-6, head_dim=128),
}
MIXED = {
    "token_embd": "Q8_0",
    "attn_q.weight": "Q4_1",
    "attn_k.weight": "Q4_0",
    "attn_v.weight": "Q5_0",
    "attn_output": "Q5_1",
    "ffn_gate": "F16",
    "ffn_up": "BF16",
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_byte_level(tmp_path_factory.mktemp("tokenizer"), QWEN)


@pytest.fixture
def tokenizer(tokenizer_folder):
    return gguf_files.byte_level(tokenizer_folder, "qwen2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_transformers(family, dtype, tokenizer, tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", reference(FAMILIES[family]), tokenizer, MIXED)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=getattr(torch, dtype)
    )
    convert_llama.main(
        ["from_hf", str(path), str(tmp_path / "run"), f"--dtype={dtype}", "--compute_dtype=float32"]
    )
    llama.to_hf(tmp_path / "run", tmp_path / "out")
    tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    expected = theirs.state_dict()
    if theirs.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name
    if dtype == "float32":
        assert_same_logits(checkpoints.load_model(tmp_path / "run", build_llama), theirs)


@pytest.mark.parametrize("kind", ["Q6_K", "Q4_K", "Q5_K"])
def test_k_quants_are_dequantised_as_in_transformers(kind):
    kind = gguf.GGMLQuantizationType[kind]
    # Bytes below 0x60 in which no half-precision scale is infinite.
    blocks = np.random.default_rng(0).integers(0, 0x60, (4, gguf.GGML_QUANT_SIZES[kind][1]))
    blocks = blocks.astype(np.uint8)
    theirs = dequantize(torch.from_numpy(blocks), int(kind)).numpy()
    np.testing.assert_allclose(gguf.dequantize(blocks, kind), theirs.reshape(4, -1), rtol=1e-6)


def open_file(tmp_path, tokenizer, config=SMALL, **changes):
    return GgufFile(gguf_files.write(tmp_path / "m.gguf", reference(config), tokenizer, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_byte_level_tokenizers(kind, tmp_path):
    expected = Tokenizer.from_pretrained(write_byte_level(tmp_path, kind))
    metadata = gguf_files.byte_level(tmp_path, PRE[kind], chat_template="{{ messages }}")
    tokenizer = open_file(tmp_path, metadata).tokenizer()
    rng = random.Random(0)
    plain = ["caf", "word"]  # llama.cpp knows no added tokens with conditions
    mixes = [mix(rng, ["a b"]) for _ in range(300)]
    mixes = [text for text in mixes if not any(word in text for word in (*plain, "left", "right"))]
    assert len(mixes) > 100
    assert tokenizer.encode_batch(mixes) == expected.encode_batch(mixes)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (expected.bos_id, expected.eos_id)
    assert tokenizer.pad_id == expected.pad_id
    assert tokenizer.config["chat_template"] == "{{ messages }}"


def test_smollms_digits_are_single_tokens(tokenizer, tmp_path):
    smollm = open_file(tmp_path, tokenizer | {"pre": "smollm"}).tokenizer()
    assert smollm.encode("1984") == [smollm.token_to_id(digit) for digit in "1984"]


def test_a_sentencepiece_tokenizer(tmp_path):
    pieces = TOKENIZER._pieces
    tokens = [pieces.id_to_piece(i) for i in range(2000)] + list(TOKENIZER.added_tokens)
    kinds = [2, CONTROL, CONTROL] + [6 if pieces.is_byte(i) else NORMAL for i in range(3, 2000)]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": kinds + [USER_DEFINED] * len(TOKENIZER.added_tokens),
        "scores": [pieces.get_score(i) for i in range(2000)] + [0.0] * len(TOKENIZER.added_tokens),
        "eos_token_id": 2,
    }
    tokenizer = open_file(tmp_path, metadata).tokenizer()
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.added_tokens == TOKENIZER.added_tokens
    rng = random.Random(0)
    for text in [mix(rng, ["\u65e5\u672c  a"]) for _ in range(300)]:
        assert tokenizer.encode(text) == TOKENIZER.encode(text)


def test_llama3_scaling_is_recognised_by_its_frequencies(tokenizer, tmp_path):
    scaling = Llama3RopeScaling(32.0, 1.0, 4.0, 8192)
    plain = 5e5 ** -(np.arange(0, 16, 2) / 16)
    model = reference(dataclasses.replace(SMALL, rope_theta=5e5))
    divisors = {"rope_freqs.weight": np.float32(plain / scaling(plain))}
    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", model, tokenizer, more=divisors))
    fields = file.fields()["config"]
    assert fields["rope_scaling"]["factor"] == pytest.approx(32)
    assert fields["rope_theta"] == 5e5 and fields["rms_norm_eps"] == 1e-5
    assert "rope_freqs" not in str(file.weights("float32").shapes)


def without(name):
    return lambda tokenizer: {n: x for n, x in tokenizer.items() if n != name}


def changed(**fields):
    return lambda tokenizer: tokenizer | fields


def sentencepiece(kind, score, left_out=0):
    def change(tokenizer):
        count = len(tokenizer["tokens"])
        scores = [score] * (count - left_out)
        return tokenizer | {"model": "llama", "token_type": [kind] * count, "scores": scores}

    return change


METADATA_MISTAKES = [
    ({"architecture": "gemma3"}, dict, "has the architecture 'gemma3'; only llama, qwen2, qwen3"),
    ({"expert_count": 8}, dict, "is a mixture of experts"),
    ({"embedding_length": None}, dict, "has no 'llama.embedding_length'"),
    ({"embedding_length": "48"}, dict, 'llama.embedding_length "48"; expected a whole number'),
    ({"attention__head_count": 0}, dict, "attention.head_count 0 must be at least 1"),
    ({"rope__freq_base": "1e4"}, dict, 'rope.freq_base "1e4"; expected a finite number'),
    ({"block_count": 10**9}, dict, "has the weights of 2 layers, its config says 10+:"),
    ({"rope__dimension_count": 8}, dict, "rotates only a part of each head"),
    ({"rope__scaling__type": "yarn"}, dict, "scales RoPE by 'yarn'"),
    ({}, without("merges"), r"tokenizer.ggml has no 'merges'; expected a list"),
    ({}, without("tokens"), r"tokenizer.ggml has no 'tokens'; expected a list"),
    ({}, without("model"), r"a tokenizer of the kind None; only .*: convert the model's Hugging"),
    ({}, changed(merges=[1, 2]), r"tokenizer.ggml has merges \[1, 2\]; expected a list, each item"),
    ({}, changed(token_type=[NORMAL]), r"tokenizer.ggml has 1 token_type for \d+ tokens; get the"),
    ({}, sentencepiece(7, 0.0), r"token_type 7 must be at least 1 and at most 6"),
    ({}, changed(add_bos_token=1), r"add_bos_token 1; expected true or false"),
    ({}, changed(add_bos_token=True), "starts texts with bos, but has no bos_token_id; get"),
    ({}, sentencepiece(CONTROL, 0.0), r"m.gguf: .*its tokens are damaged .*; get"),
    ({}, sentencepiece(NORMAL, 0.0), r"m.gguf: .*its tokens are damaged .*; get"),
    ({}, sentencepiece(NORMAL, 0.0, left_out=1), r"tokenizer.ggml has \d+ scores for \d+ tokens"),
    ({}, sentencepiece(NORMAL, "0"), r"has scores .*; expected a list, each item a finite number"),
    ({}, changed(model="bert"), "a tokenizer of the kind 'bert'"),
    ({}, changed(pre="new"), "splits text as 'new'; only default"),
    ({}, changed(merges=["a zz9"]), "merges don't fit its tokens .*; get the file again"),
    ({}, changed(eos_token_id=9999), "eos_token_id 9999 must be"),
    ({}, changed(unknown_token_id=9999), r"unknown_token_id 9999 must be at least 0 and below \d"),
    (
        {},
        lambda tokenizer: (
            tokenizer
            | {
                "tokens": tokenizer["tokens"] + [f"extra{i}" for i in range(100)],
                "token_type": tokenizer["token_type"] + [NORMAL] * 100,
            }
        ),
        "but the embedding only 660 rows",
    ),
]


@pytest.mark.parametrize(("changes", "change", "message"), METADATA_MISTAKES)
def test_files_that_can_not_be_converted(changes, change, message, tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    gguf_files.write(tmp_path / "in" / "m.gguf", reference(SMALL), change(tokenizer), **changes)
    with pytest.raises(UserError, match=message) as caught:
        llama.from_hf(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 3, 30, 2000, 40_000, -1000])
def test_truncated_files(size, tokenizer, tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", reference(SMALL), tokenizer)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"m.gguf is truncated or no GGUF file .*; get it again"):
        llama.from_hf(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("window", [0, 2048])
def test_windows_that_hide_nothing_are_accepted(window, tokenizer, tmp_path):
    path = gguf_files.write(
        *(tmp_path / "m.gguf", reference(SMALL), tokenizer),
        context_length=2048,
        attention__sliding_window=window,
    )
    assert GgufFile(path).fields()["config"]["max_position_embeddings"] == 2048


def test_a_window_needs_a_context_as_short(tokenizer, tmp_path, monkeypatch):
    """The file is refused; the way of the message leads to a run."""
    path = gguf_files.write(
        *(tmp_path / "m.gguf", reference(SMALL), tokenizer),
        context_length=2048,
        attention__sliding_window=512,
    )
    message = r"m.gguf has a sliding window of 512 tokens and a context of 2048; .* so run `"
    with pytest.raises(UserError, match=message) as caught:
        llama.from_hf(path, tmp_path / "out")
    command = re.findall("`(.*)`", str(caught.value))[0].split()
    assert command[0] == "gguf-set-metadata"
    monkeypatch.setattr(sys, "argv", [*command, "--force"])
    gguf_set_metadata.main()
    llama.from_hf(path, tmp_path / "out")
    kept = checkpoints.read_metadata(tmp_path / "out")["hugging_face"]["config"]
    assert kept["max_position_embeddings"] == 512


def test_a_base_is_for_adapters_only(tokenizer, tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", reference(SMALL), tokenizer)
    with pytest.raises(UserError, match=r"m.gguf has no adapter_config.json: leave out --base"):
        convert_llama.main(["from_hf", str(path), str(tmp_path / "out"), f"--base={tmp_path}"])


def test_which_file_is_read(tokenizer, tmp_path):
    gguf_files.write(tmp_path / "a.gguf", reference(SMALL), tokenizer)
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"has 2 .gguf files, a.gguf and b.gguf among them"):
        llama.from_hf(tmp_path, tmp_path / "out")
    reference(SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--dtype is for GGUF files, and"):
        llama.from_hf(tmp_path, tmp_path / "out", dtype="bfloat16")
