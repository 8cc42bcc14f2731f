"""A hundred descriptions per direction: distinct, varied and unambiguous."""

import itertools
import re

import pytest

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions

WRITING = (
    r"\b(writ|text|transcri|typ|print|paper|letters|dictation|read(able)?\b|note|minutes|caption"
    r"|subtitle|stenographer|quote|down)"
)
SPEAKING = (
    r"\b(aloud|say|said|speak|speech|spoken|voice|sound|hear|audio|audible|record|listen|talk"
    r"|read (it|this|these|out)|pronounce|recite|narrate|announce|utter|vocalize|articulate"
    r"|dictate|deliver|loud|on air)"
)
# Function words, which are not compared.
FILLERS = {"a", "an", "the", "this", "these", "it", "its", "is", "to", "of", "in", "as", "please"}

both = pytest.mark.parametrize("options", [descriptions.ASR, descriptions.TTS], ids=["asr", "tts"])


def words(description: str) -> set[str]:
    return set(re.findall(r"[a-z']+", description.lower())) - FILLERS


def similarity(one: str, other: str) -> float:
    """Shared words over all words (Jaccard)."""
    return len(words(one) & words(other)) / len(words(one) | words(other))


@both
def test_there_are_a_hundred_that_fit_the_template(options):
    assert len(options) == 100
    for description in options:
        assert description[0].isupper() and description[-1] not in ".?! ", description
        assert description.isascii() and "  " not in description
        assert 2 <= len(description.split()) <= 12, description


@both
def test_no_two_are_nearly_the_same(options):
    near = [pair for pair in itertools.combinations(options, 2) if similarity(*pair) > 0.67]
    assert not near


@both
def test_they_begin_in_many_ways_and_differ_in_length(options):
    starts = [description.split()[0] for description in options]
    assert len(set(starts)) >= 40
    assert max(starts.count(start) for start in starts) <= 6
    assert len({len(description.split()) for description in options}) >= 8


def test_descriptions_are_unambiguous():
    assert not set(descriptions.ASR) & set(descriptions.TTS)
    for description in descriptions.ASR:
        assert re.search(WRITING, description, re.I), description
        assert not re.search(r"\b(aloud|out loud|to speech|into sound)\b", description, re.I)
    for description in descriptions.TTS:
        assert re.search(SPEAKING, description, re.I), description
        assert not re.search(r"\b(in writing|to text|as text|transcri\w+)\b", description, re.I)


def test_descriptions_of_our_mains_are_trained():
    assert prompts.TRANSCRIBE in descriptions.ASR
    assert prompts.SPEAK in descriptions.TTS
