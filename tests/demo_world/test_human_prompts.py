"""Transcripts of voice prompts as texts of the corpus."""

import pytest

from speechgpt_jax.demo_world.human_prompts import human_prompts, prompt_text


@pytest.mark.parametrize(
    "transcript, text",
    [
        ("Press 7 to delete this message.", "press seven to delete this message."),
        ("...to leave the conference.", "to leave the conference."),
        ("To which folder?", "to which folder?"),
        ("The conference is locked!", "the conference is locked."),
        ("I am sorry.  You've entered it.", "i am sorry. you've entered it."),
        ("dial 500 now", ""),
        ("press # to exit", ""),
        ("IAX", ""),
        ("(10 seconds of silence)", ""),
        ("Use the 7 key for Q.", ""),
    ],
)
def test_prompt_text(transcript, text):
    assert prompt_text(transcript) == text


def test_human_prompts_without_the_packages_says_what_to_unpack(tmp_path):
    with pytest.raises(ValueError, match="dpkg-deb -x"):
        human_prompts(tmp_path, 3)
