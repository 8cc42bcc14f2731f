"""Command templates of text to speech."""

import sys

import pytest

from speechgpt_jax.corpus import text_to_speech
from speechgpt_jax.errors import UserError


def test_the_text_is_one_argument_whatever_is_in_it():
    text = 'it\'s {wav}; $(rm -rf ~) "or" not?'
    command = text_to_speech.speech_command(text_to_speech.FLITE, "slt", text, "/a b.wav")
    assert command == ["flite", "-voice", "slt", "-t", text, "-o", "/a b.wav"]


def test_a_template_without_text_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['{text}'\]"):
        text_to_speech.speech_command("flite -o {wav}", "slt", "hello", "a.wav")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no-such-voice {text} {wav}", "'no-such-voice' is not installed"),
        ("flite -t {text}", r"lacks \['{wav}'\]"),
        ("flite '{text} {wav}", "is not a command line: No closing quotation"),
    ],
)
def test_a_bad_command_is_refused_before_the_work(template, message):
    with pytest.raises(UserError, match=message):
        text_to_speech.check_command(template)


PROGRAM = "import sys; wav, text = sys.argv[1:]; open(wav, 'a').write(text); sys.exit('x' in text)"


@pytest.mark.parametrize("text", ["x", "", "a\0b", "\ud800", "a" * 3_000_000])
def test_failed_synthesis_leaves_no_file(tmp_path, text):
    template = f'{sys.executable} -c "{PROGRAM}" {{wav}} {{text}}'
    with pytest.raises(text_to_speech.SynthesisError):
        text_to_speech.synthesize(template, "", text, tmp_path / "a.wav")
    assert not list(tmp_path.iterdir())
    text_to_speech.synthesize(template, "", "hello", tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_text() == "hello"
