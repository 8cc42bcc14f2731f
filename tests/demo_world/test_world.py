"""Size of the demo world, and separation of its splits."""

import re
from collections import defaultdict

import pytest

from speechgpt_jax.demo_world import words as demo_words
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.demo_world.question_pattern import number
from speechgpt_jax.demo_world.question_patterns import question_patterns
from speechgpt_jax.demo_world.world import words

TRAIN = [d for d in demo_world.questions() if d.split == "train"]
TEST = [d for d in demo_world.questions() if d.split == "test"]


def test_size_of_the_world():
    dialogues = demo_world.questions()
    assert len({d.topic for d in dialogues}) >= 12
    assert len({(d.fact, d.answer) for d in dialogues}) >= 2000
    assert 180 <= len(TEST) <= 220
    assert 350 <= len(demo_world.vocabulary()) <= 450


def test_every_kind_of_question_is_trained_and_has_several_wordings():
    all_patterns = question_patterns()
    assert {d.wording.split("/")[0] for d in TRAIN} == {pattern.name for pattern in all_patterns}
    assert all(3 <= len(set(pattern.wordings)) <= 6 for pattern in all_patterns)


def test_a_question_has_one_answer():
    answers = defaultdict(set)
    for d in demo_world.questions():
        answers[d.question].add(d.answer)
    assert not {question: found for question, found in answers.items() if len(found) > 1}


def test_no_test_question_is_trained():
    assert not {d.question for d in TRAIN} & {d.question for d in TEST}
    assert {d.held_out for d in TRAIN} == {""}
    assert {d.held_out for d in TEST} == {"combination", "wording"}


def test_held_out_combinations_never_occur_in_training():
    held_out = [d for d in TEST if d.held_out == "combination"]
    assert len(held_out) >= 80
    assert not {d.combination for d in held_out} & {d.combination for d in TRAIN}
    assert not {d.fact for d in held_out} & {d.fact for d in TRAIN}


def operands(dialogue):
    """ "two plus three is five." -> {"two", "three"}."""
    return frozenset(dialogue.answer.split(" is ")[0].split(" plus "))


def test_held_out_sums_are_held_out_in_both_orders_and_all_wordings():
    sums = [d for d in TEST if d.held_out == "combination" and " plus " in d.answer]
    assert sums
    assert not set(map(operands, sums)) & {operands(d) for d in TRAIN if " plus " in d.answer}


def test_facts_and_wordings_of_held_out_wordings_are_trained():
    held_out = [d for d in TEST if d.held_out == "wording"]
    assert len(held_out) == demo_world.WORDING_TEST_QUESTIONS
    assert not {(d.fact, d.wording) for d in held_out} & {(d.fact, d.wording) for d in TRAIN}
    assert {d.fact for d in held_out} <= {d.fact for d in TRAIN}
    # A greeting has a single fact, so that its held-out wording doesn't occur in training.
    asked = {d.wording for d in held_out if d.topic != "small talk"}
    assert asked <= {d.wording for d in TRAIN}


def test_every_topic_is_tested():
    assert {d.topic for d in TEST} == {d.topic for d in TRAIN}


def test_vocabulary_is_closed():
    spoken = {w for s in demo_world.all_sentences() for w in words(s.text)}
    assert spoken == set(demo_world.vocabulary())
    trained = {w for s in demo_world.all_sentences() if s.split == "train" for w in words(s.text)}
    assert spoken == trained


def test_texts_are_lower_case_words_with_light_punctuation():
    for sentence in demo_world.all_sentences():
        assert set(sentence.text) <= set("abcdefghijklmnopqrstuvwxyz ,.?"), sentence
        assert sentence.text[-1] in ".?"


def test_answers_are_short_sentences():
    assert all(3 <= len(d.answer.split()) <= 9 for d in demo_world.questions())


def test_two_fifths_of_the_plain_sentences_have_no_order():
    for split in ("train", "test"):
        sentences = [s for s in demo_world.plain_sentences() if s.split == split]
        free = [s for s in sentences if s.topic == demo_world.FREE_ORDER]
        assert len(free) >= 0.4 * len(sentences)
        assert all(4 <= len(s.text.split()) <= 9 for s in free)


def test_all_words_are_equally_frequent_in_free_order():
    counts = dict.fromkeys(demo_world.vocabulary(), 0)
    for sentence in demo_world.free_order_sentences():
        for word in words(sentence.text):
            counts[word] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


def test_plain_test_sentences_are_not_trained():
    train = {s.text for s in demo_world.all_sentences() if s.split == "train"}
    test = [s for s in demo_world.plain_sentences() if s.split == "test"]
    assert len(test) == 200
    assert not train & {s.text for s in test}


def parser(pattern, lists):
    """Finds the fillers of a sentence: "the {1} is {2} the {0}." -> groups f0, f1, f2."""
    found = re.escape(pattern)
    for i, name in enumerate(lists.split()):
        found = found.replace(rf"\{{{i}\}}", f"(?P<f{i}>{'|'.join(demo_words.FILLERS[name])})")
    return re.compile(found)


@pytest.mark.parametrize("topic, pattern, lists", demo_words.PATTERNS)
def test_pairs_of_fillers_of_templated_test_sentences_are_not_trained(topic, pattern, lists):
    pairs = {"train": set(), "test": set()}
    for sentence in demo_world.templated_sentences():
        match = parser(pattern, lists).fullmatch(sentence.text)
        if match and sentence.topic == topic:
            pairs[sentence.split].add((match["f0"], match["f1"]))
    assert pairs["train"]
    assert not pairs["train"] & pairs["test"]


@pytest.mark.parametrize(
    "value, text", [(0, "zero"), (19, "nineteen"), (40, "forty"), (41, "forty one")]
)
def test_number(value, text):
    assert number(value) == text
