"""Regular expressions for many tokens."""

import re

from speechgpt_jax.tokenizer import any_of


def test_patterns_match_the_longest_and_nothing_else():
    tokens = ["<eos>", "<eosp>", *(f"<{n}>" for n in range(1000)), "ab", "abc"]
    pattern = re.compile(any_of(tokens))
    assert all(pattern.fullmatch(token) for token in tokens)
    assert not any(map(pattern.fullmatch, ["<1000>", "<01>", "<>", "<eo>", "a", ""]))
    assert pattern.match("abcd").group() == "abc"
    assert len(pattern.pattern) < 200
