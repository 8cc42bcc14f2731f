"""Conversion of tokenizers in both directions, compared with transformers."""

import json
import random
import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_jax.conversion import tokenizer_format
from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import MARKERS, added_tokens
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, HuggingFaceTokenizer, SentencePieceTokenizer
from tests.conversion.released import GOLDEN, PROMPTS, TOKENIZER, change_json
from tests.tokenizer.byte_level import KINDS, QWEN, mix, write

pytestmark = pytest.mark.slow

CASES = json.loads((GOLDEN / "llama_tokenizer.json").read_text())["cases"]
ROWS = TOKENIZER.vocab_size


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    tokenizer_format.write(TOKENIZER, folder, max_length=2048)
    return folder


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
PARTS = st.one_of(TEXT, st.sampled_from([" ", "\n", "<s>", "<5>", "<999>", *MARKERS]))


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=12).map("".join))
def test_the_exported_tokenizer_gives_our_ids(fast, text):
    assert fast(text, add_special_tokens=False).input_ids == TOKENIZER.encode(text)


def test_the_demo_tokenizer_is_exported_too():
    demo = SentencePieceTokenizer.from_folder(DEMO_TOKENIZER)
    fast = tokenizer_format.build(demo)
    for text in [*PROMPTS, "what is two plus three? <sosp><17><103><eosp>"]:
        assert fast.encode(text, add_special_tokens=False).ids == demo.encode(text)


def original(folder: Path) -> Path:
    """The released layout, with the files that transformers 5 needs."""
    TOKENIZER.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    return folder


def resave_llama(folder: Path, out: Path):
    transformers.LlamaTokenizer.from_pretrained(original(folder)).save_pretrained(out)


def resave_auto(folder: Path, out: Path):
    transformers.AutoTokenizer.from_pretrained(original(folder)).save_pretrained(out)


def resave_slow(folder: Path, out: Path):
    slow = transformers.AutoTokenizer.from_pretrained(original(folder), use_fast=False)
    slow.save_pretrained(out)


def resave_with_pad(folder: Path, out: Path):
    """Adds `<pad>`, whose id is one past the rows of the model."""
    fast = transformers.AutoTokenizer.from_pretrained(original(folder))
    fast.add_special_tokens({"pad_token": "<pad>"})
    assert fast.pad_token_id == ROWS
    fast.save_pretrained(out)


def resave_export(folder: Path, out: Path):
    folder.mkdir()
    tokenizer_format.write(TOKENIZER, folder, max_length=2048)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def resave_twice(folder: Path, out: Path):
    resave_export(folder, out / "once")
    transformers.AutoTokenizer.from_pretrained(out / "once").save_pretrained(out)


RESAVED = [
    resave_llama,
    resave_auto,
    resave_slow,
    resave_with_pad,
    resave_export,
    resave_twice,
]


@pytest.mark.parametrize("resave", RESAVED)
def test_what_transformers_saves_again_is_the_same_tokenizer(resave, tmp_path):
    resave(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    tokenizer = tokenizer_format.read(tmp_path / "out", ROWS)
    assert tokenizer.added_tokens == TOKENIZER.added_tokens
    for case in CASES:
        assert [tokenizer.bos_id, *tokenizer.encode(case["text"])] == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    # It can be exported again.
    fast = tokenizer_format.build(tokenizer)
    assert fast.get_vocab() == tokenizer_format.build(TOKENIZER).get_vocab()


def test_added_tokens_only_in_the_json_beside_the_original_model(tmp_path):
    resave_llama(tmp_path / "in", tmp_path / "out")
    shutil.copy(GOLDEN / "tokenizer.model", tmp_path / "out")
    assert tokenizer_format.read(tmp_path / "out", ROWS).added_tokens == TOKENIZER.added_tokens


@pytest.mark.parametrize("token", ["<pad>", "[PAD]", "<|padding|>"])
def test_a_padding_token_one_row_past_the_embedding(token, tmp_path, capsys):
    TOKENIZER.save_pretrained(tmp_path)
    change_json(tmp_path / "added_tokens.json", **{token: ROWS})
    change_json(tmp_path / "tokenizer_config.json", pad_token={"content": token})
    tokenizer = tokenizer_format.read(tmp_path, ROWS)
    assert tokenizer.added_tokens == TOKENIZER.added_tokens
    assert f"{token} is left out" in capsys.readouterr().out
    # With a row of its own it stays.
    assert tokenizer_format.read(tmp_path, ROWS + 1).token_to_id(token) == ROWS


def test_other_tokens_past_the_embedding_are_refused(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"3006 ids, '<eos>' among them, but the embedding only 3005"
    ):
        tokenizer_format.read(tmp_path, ROWS - 1)


def test_pieces_past_the_embedding_are_refused(tmp_path):
    SentencePieceTokenizer(TOKENIZER.model, {}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"2000 ids, but the embedding only 1999 rows"):
        tokenizer_format.read(tmp_path, 1999)


@pytest.mark.parametrize("damaged", [{"added_tokens": [5]}, {"model": [1]}, {"added_tokens": 5}])
def test_a_damaged_tokenizer_json_is_refused(damaged, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"tokenizer.json (is damaged|has added).*again"):
        tokenizer_format.read(tmp_path, ROWS)


def another_kind(fields):
    fields["model"]["byte_fallback"] = False


def other_merges(fields):
    fields["model"]["merges"] = fields["model"]["merges"][1:]


def no_prefix(fields):
    fields["normalizer"] = None


@pytest.mark.parametrize("change", [another_kind, other_merges, no_prefix])
def test_a_tokenizer_json_of_another_kind_is_taken_as_it_is(change, exported, tmp_path):
    shutil.copy(exported / "tokenizer_config.json", tmp_path)
    fields = json.loads((exported / "tokenizer.json").read_text())
    change(fields)
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = tokenizer_format.read(tmp_path, ROWS)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.unit_ids == TOKENIZER.unit_ids


def test_without_files_there_is_no_tokenizer(tmp_path, capsys):
    assert tokenizer_format.read(tmp_path, ROWS) is None
    assert "has no tokenizer.model and no tokenizer.json" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_tokenizer_json_gives_our_ids(kind, tmp_path):
    """Whatever class the source names, and with units."""
    source = tokenizer_format.read(write(tmp_path / "in", kind), 700)
    tokenizer = source.with_tokens(added_tokens(200))
    (tmp_path / "out").mkdir()
    tokenizer_format.write(tokenizer, tmp_path / "out", max_length=512)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rng = random.Random(0)
    for text in [mix(rng, ["<sosp> <17><5> <eosp>"]) for _ in range(300)]:
        assert fast(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
        assert fast(text).input_ids == tokenizer.encode_prompt(text)
    assert fast.eos_token_id == tokenizer.eos_id
    assert (len(fast), fast.model_max_length) == (tokenizer.vocab_size, 512)


def test_a_padding_token_of_a_tokenizer_json_without_a_row(tmp_path, capsys):
    folder = write(tmp_path, QWEN)
    plain = tokenizer_format.read(folder, 700)
    fields = json.loads((folder / "tokenizer.json").read_text())
    token = fields["added_tokens"][0] | {"id": plain.vocab_size, "content": "[PAD]"}
    change_json(folder / "tokenizer.json", added_tokens=[*fields["added_tokens"], token])
    change_json(folder / "tokenizer_config.json", pad_token="[PAD]")
    assert tokenizer_format.read(folder, 700).pad_id == plain.vocab_size
    tokenizer = tokenizer_format.read(folder, plain.vocab_size)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (plain.vocab_size, plain.eos_id)
    assert "[PAD] is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"but the embedding only {plain.vocab_size - 1} rows"):
        tokenizer_format.read(folder, plain.vocab_size - 1)


def test_a_model_of_another_kind_is_not_exported(tmp_path):
    model = tokenizer_format.ModelProto.FromString(TOKENIZER.model)
    model.normalizer_spec.add_dummy_prefix = False
    other = SentencePieceTokenizer(model.SerializeToString(), TOKENIZER.added_tokens)
    with pytest.raises(UserError, match=r"not of LLaMA's kind .* export the weights only"):
        tokenizer_format.write(other, tmp_path, max_length=2048)
