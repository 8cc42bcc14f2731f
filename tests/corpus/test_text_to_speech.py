"""Command templates of text to speech."""

import pytest

from speechgpt_jax.corpus import text_to_speech


def test_the_text_is_one_argument_whatever_is_in_it():
    text = 'it\'s {wav}; $(rm -rf ~) "or" not?'
    command = text_to_speech.speech_command(text_to_speech.FLITE, "slt", text, "/a b.wav")
    assert command == ["flite", "-voice", "slt", "-t", text, "-o", "/a b.wav"]


def test_a_template_without_text_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['{text}'\]"):
        text_to_speech.speech_command("flite -o {wav}", "slt", "hello", "a.wav")
