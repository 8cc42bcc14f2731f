"""Texts divided at the ends of sentences."""

import pytest

from speechgpt_jax.decoding.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good morning", ["good morning"]),
        (" good morning. ", ["good morning."]),
        ("one. two! three? four", ["one.", "two!", "three?", "four"]),
        ('"Stop!" he said. "Why?"', ['"Stop!"', "he said.", '"Why?"']),
        ("Wait... what?! yes", ["Wait...", "what?!", "yes"]),
        ("Dr. Fox ran 3.5 miles. Why?", ["Dr. Fox ran 3.5 miles.", "Why?"]),
        ("J. S. Bach, e.g. in C. He wrote", ["J. S. Bach, e.g. in C. He wrote"]),
        ("a title\n\na line\nand its end", ["a title", "a line\nand its end"]),
        ("今日は。元気？「はい。」", ["今日は。", "元気？", "「はい。」"]),
        ("one. - ! two", ["one. - !", "two"]),
        ("... one. two", ["... one.", "two"]),
        ("...", ["..."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_no_word_is_lost():
    text = "It rained. Then, at 5 p.m. or so, it did not! “Really?” Yes (so they say.) \n\n The end"
    assert " ".join(sentences(text)).split() == text.split()
