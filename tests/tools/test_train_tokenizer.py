"""LLaMA's settings, seen from what comes out."""

from speechgpt_jax.tokenizer import Tokenizer
from tools.train_tokenizer import train_sentencepiece


def test_a_trained_model_behaves_like_llamas():
    sentences = [f"the {a} cat and the {b} dog" for a in ("red", "big") for b in ("old", "shy")]
    tokenizer = Tokenizer(train_sentencepiece(20 * sentences, vocab_size=310), {"<0>": 310})
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert len(tokenizer.encode("the")) == 1
    for text in ("the cat", "2024", "a  b ", "日本", "é<0>\n"):  # byte fallback and spaces
        assert "<unk>" not in map(tokenizer.id_to_token, tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<0>\n", " <0>")
    assert tokenizer.encode("a  b") != tokenizer.encode("a b")
