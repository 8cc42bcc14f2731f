"""Ids, compared with those of transformers 4.33.1."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from speechgpt_jax import files
from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import MARKERS
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, SentencePieceTokenizer, Tokenizer

GOLDEN = Path(__file__).parent.parent / "testdata" / "golden"
CASES = json.loads((GOLDEN / "llama_tokenizer.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained(GOLDEN)


def test_golden_ids(tokenizer):
    for case in CASES:
        assert [tokenizer.bos_id, *tokenizer.encode(case["text"])] == case["ids"], case["text"]


def test_golden_decoded_text(tokenizer):
    for case in CASES:
        assert tokenizer.decode(case["ids"]) == case["decoded"], case["text"]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a <s> b</s><5>", "<0x41>"])
def test_control_tokens_in_text_are_text(tokenizer, text):
    control = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    ids = tokenizer.encode(text)
    assert not control & set(ids)
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_unicode_spaces_around_added_tokens_are_dropped(tokenizer):
    tight = tokenizer.encode("a<5>b")
    for space in (" ", "\n", "\t", "\x1c", "\x85", "\xa0", "\u2003", "\u3000"):
        assert tokenizer.encode(f"a{space}<5>{space}{space}b") == tight
    assert tokenizer.encode("a\u200b<5>b") != tight  # a zero-width space is none


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer):
    text = "na\u00efve \U0001f600 caf\u00e9"
    pieces = [tokenizer.token_bytes(id_) for id_ in tokenizer.encode(text)]
    assert b"".join(pieces) == f" {text}".encode()
    assert "\U0001f600".encode() not in pieces  # It has several tokens.
    assert tokenizer.token_bytes(tokenizer.token_to_id("<5>")) == b"<5>"
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


def test_sizes_and_ids(tokenizer):
    assert tokenizer.vocab_size == 3006
    assert tokenizer.unit_ids == range(2000, 3000)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.token_to_id("<sosp>") == 3000
    assert tokenizer.decode([3005]) == "<eos>"


def test_added_tokens_of_a_newer_folder(tmp_path, tokenizer):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    decoder = {
        str(id_): {"content": token} for id_, token in enumerate(["<unk>", "<s>", "</s>"])
    } | {str(id_): {"content": token} for token, id_ in tokenizer.added_tokens.items()}
    config = {"added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_pretrained(tmp_path).added_tokens == tokenizer.added_tokens


def test_an_added_token_that_is_a_piece(tmp_path, tokenizer):
    """As in transformers, the text is split there, and the id is the piece's."""
    [the] = tokenizer.encode("the")
    piece = "▁the"
    assert tokenizer.token_to_id(piece) == the
    tokenizer.save_pretrained(tmp_path)
    decoder = {str(the): {"content": piece}, "1": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.added_tokens == tokenizer.added_tokens | {piece: the}
    assert again.encode("the cat <5>") == tokenizer.encode("the cat <5>")
    assert again.encode(f"a{piece}b") == [*again.encode("a"), the, *again.encode("b")]


def test_from_files_gives_the_ids_after_the_pieces(tokenizer):
    built = SentencePieceTokenizer.from_files(GOLDEN / "tokenizer.model", ["<0>", "<1>", "<sosp>"])
    assert built.encode("<sosp><1>") == [2002, 2001]
    assert built.unit_ids == range(2000, 2002)


def test_a_plain_model_has_no_units():
    plain = SentencePieceTokenizer.from_files(GOLDEN / "tokenizer.model", [])
    assert len(plain.unit_ids) == 0
    assert plain.decode(plain.encode("hello there")) == "hello there"


def test_save_and_load(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.model == tokenizer.model
    assert again.added_tokens == tokenizer.added_tokens


def trained_without(**ids: int) -> bytes:
    """A small model whose bos or eos is switched off by the id -1."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sat", "the dog ran"] * 9),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def test_a_model_without_bos_has_none():
    tokenizer = SentencePieceTokenizer(trained_without(bos_id=-1, eos_id=1), {})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 1)
    assert tokenizer.encode_prompt("cat") == tokenizer.encode("cat")


def test_a_model_without_eos_is_refused():
    with pytest.raises(UserError, match="the SentencePiece model has no eos"):
        SentencePieceTokenizer(trained_without(eos_id=-1), {})


@pytest.mark.parametrize("missing", ["tokenizer.model", "added_tokens.json"])
def test_a_folder_that_is_not_complete_has_no_tokenizer(tmp_path, tokenizer, monkeypatch, missing):
    def write(path, data):
        if path.name == missing:
            raise KeyboardInterrupt
        path.write_bytes(data)

    monkeypatch.setattr(files, "write_bytes", write)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


def test_shipped_tokenizer():
    shipped = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    assert len(shipped.unit_ids) == 200
    first = shipped.unit_ids.stop
    assert [shipped.token_to_id(token) for token in MARKERS] == [*range(first, first + 6)]
    assert len(shipped.encode("what is two plus three")) == 5


def test_mistakes_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"expected a tokenizer.model or a tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    for text, message in {
        '{"<0>": 5}': "'<0>' has id 5, which is another piece",
        '{"<0>": 2000, "<1>": 2000}': "have the same id",
        '{"<0>": 2000, "<1>": 2002}': "id 2001: .* below 2000, and '<1>' is 2002: take",
        '{"<0>": 1000000000000}': "No token has id 2000",
        '{"<0>": "5"}': "must give each token a whole number",
        '{"<0>": true}': "must give each token a whole number",
        "{": "is not JSON",
        "[]": "expected an object",
    }.items():
        (tmp_path / "added_tokens.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"5": "x"}}')
    with pytest.raises(
        UserError,
        match=r'added_tokens_decoder {"5": "x"}; expected a mapping, each value a mapping',
    ):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither an added token nor a piece"):
        tokenizer.token_to_id("<1000>")
    with pytest.raises(UserError, match="No token has id 3006"):
        tokenizer.decode([3006])
