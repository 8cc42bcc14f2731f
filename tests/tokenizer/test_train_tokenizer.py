"""Training of tokenizers: LLaMA's settings, and unusual texts."""

import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, SentencePieceTokenizer, Tokenizer
from speechgpt_jax.tokenizer.training import train_sentencepiece
from tools import train_tokenizer

SENTENCES = [f"the {a} cat and the {b} dog" for a in ("red", "big") for b in ("old", "shy")]


def trained(sentences, vocab_size=310) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.from_model(train_sentencepiece(sentences, vocab_size), ["<0>"])


def test_a_trained_model_behaves_like_llamas():
    tokenizer = trained(20 * SENTENCES)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert len(tokenizer.encode("the")) == 1
    for text in ("the cat", "2024", "a  b ", "日本", "é<0>\n"):  # byte fallback and spaces
        assert tokenizer.unk_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<0>\n", " <0>")
    assert tokenizer.encode("a  b") != tokenizer.encode("a b")


@pytest.mark.parametrize(
    "text",
    [
        "lonely zebra " * 1000,  # 13,000 bytes
        "é" * 3000 + " lonely zebra lonely zebra",
        "lonely zebra\0lonely zebra",
        "lonely zebra \u2585 lonely zebra",
        "lonely\u2028zebra lonely zebra lonely zebra",
    ],
    ids=["long", "long_in_bytes", "null", "reserved", "separator"],
)
def test_no_line_is_dropped(text):
    tokenizer = trained([*SENTENCES, *5 * [text]])
    assert len(tokenizer.encode("lonely zebra")) <= 3
    assert len(trained(SENTENCES, 290).encode("lonely zebra")) > 6


def test_the_longest_accepted_word_is_trained():
    assert len(trained([*SENTENCES, "x" * 65_000]).encode("xxxx")) <= 3


def run(tmp_path, data: bytes | None, *more: str):
    file = tmp_path / "text.txt"
    if data is not None:
        file.write_bytes(data)
    train_tokenizer.main([f"--text={file}", f"--output={tmp_path / 'out'}", *more])


def test_lines_of_a_file_end_at_line_feeds(tmp_path, capsys):
    lines = ["the cat\u2028sat", "a\x85dog", "the\x0bcat", *20 * SENTENCES]
    run(tmp_path, ("\ufeff" + "\r\n\n".join(lines) + "\n").encode(), "--vocab_size=310")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer.unit_ids) == 200
    assert f"of {len(lines)} lines" in capsys.readouterr().out
    assert "\ufeff" not in tokenizer.decode(tokenizer.encode("the cat"))


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (None, [], "--text: expected a path that exists"),
        (b"", [], "there is no text to train"),
        (b"\n \n\r\n", [], "there is no text to train"),
        ("caf\xe9\n".encode("latin-1"), [], r"text.txt:1: not UTF-8 .*; save it as UTF-8"),
        (b"a cat\n" * 9, ["--vocab_size=5000"], r"vocab_size 5000 .* at most 2\d\d\.$"),
        (
            bytes(" ".join(map(chr, range(0x4E00, 0x4F00))), "utf-8"),
            [],
            "needs one of at least 516",
        ),
        (b"a cat\n", ["--vocab_size=3"], "--vocab_size: expected a whole number.*300"),
        (b"a cat\n", ["--vocab_size=10000000000000"], "--vocab_size: .* at most 1000000"),
        (b"a cat\n", ["--num_units=0"], "--num_units: expected"),
        (b"a cat\n", ["--num_units=10000000000000"], "--num_units: .* at most 1000000"),
        (b"a " + 65_001 * b"x", [], r"a word of the text has 65001 characters \('x+'\.\.\.\)"),
    ],
    ids=[
        *("missing", "empty", "blank", "latin-1", "too_large", "too_small", "tiny"),
        *("huge", "no_units", "many_units", "long_word"),
    ],
)
def test_mistakes_are_one_line(data, more, message, tmp_path, capfd):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, data, "--vocab_size=300", *more)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "the library prints nothing beside it"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"no model"])
def test_a_file_that_is_no_model(data, tmp_path, capfd):
    (tmp_path / "a.model").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.model is not a SentencePiece model; get it again"):
        train_tokenizer.main([f"--model={tmp_path}/a.model", f"--output={tmp_path}/out"])
    assert capfd.readouterr().err == ""


def test_the_shipped_tokenizer_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="--output"):
        train_tokenizer.main([])
    with pytest.raises(UserError, match=r"tokenizer.model exists; name another folder"):
        train_tokenizer.main([f"--output={DEMO_TOKENIZER}"])


@pytest.mark.parametrize(("more", "markers"), [([], 6), (["--no_roles"], 2)])
def test_tokens_are_added_to_a_model_that_exists(more, markers, tmp_path):
    model = f"{DEMO_TOKENIZER}/tokenizer.model"
    train_tokenizer.main(
        [f"--model={model}", "--num_units=1000", f"--output={tmp_path / 'out'}", *more]
    )
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert list(tokenizer.unit_ids) == list(range(1500, 2500))
    assert tokenizer.token_to_id("<sosp>") == 2500
    assert tokenizer.vocab_size == 2500 + markers


def test_a_model_that_exists_is_not_trained(tmp_path):
    model = f"{DEMO_TOKENIZER}/tokenizer.model"
    with pytest.raises(UserError, match="leave them out with --model"):
        train_tokenizer.main([f"--model={model}", "--vocab_size=400", f"--output={tmp_path / 'o'}"])
