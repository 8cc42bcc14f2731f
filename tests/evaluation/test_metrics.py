"""Metrics of literal answers."""

import pytest

from speechgpt_jax.evaluation import metrics
from speechgpt_jax.prompts import Response


def texts(*said):
    return [Response("", text, []) for text in said]


def test_word_error_rate_ignores_case_and_punctuation():
    figures = metrics.word_error_rate(
        texts("What is two plus three?", "a cat."), texts("what is two plus tree", "A cat")
    )
    assert figures["wer"] == pytest.approx(1 / 7)
    assert figures["wer_of_another_sentence"] >= 1


def test_silence_is_all_wrong():
    assert metrics.word_error_rate(texts("a cat"), texts(""))["wer"] == 1.0


def test_question_word_error_rate_reads_the_transcript():
    targets = [Response("what is it?", "a cat", [])]
    predictions = [Response("what was it", "a dog", [])]
    figures = metrics.question_word_error_rate(targets, predictions)
    assert figures["question_wer"] == pytest.approx(1 / 3)


def test_answer_accuracy():
    figures = metrics.answer_accuracy(texts("a cat.", "a dog."), texts("A cat", "a dog too"))
    assert figures == {
        "answer_accuracy": 0.5,
        "answer_accuracy_low": 0.0,
        "answer_accuracy_high": 1.0,
    }


def test_a_response_of_another_form():
    targets = [Response("", "what is it?", []), Response("", "", [5])]
    predictions = [Response("what is it?", "a cat", [7]), Response("", "", [9, 1])]
    assert metrics.form_errors(targets, predictions)["form_error"] == 0.5


def test_the_interval_is_that_of_a_binomial_share():
    right = [True] * 80 + [False] * 20
    figures = metrics.rate("share", right, [1] * 100)
    # Clopper and Pearson's exact interval of 80 of 100.
    assert figures["share_low"] == pytest.approx(0.708, abs=0.02)
    assert figures["share_high"] == pytest.approx(0.873, abs=0.02)


def test_figures_with_intervals():
    figures = {"wer": 0.125, "wer_low": 0.0, "wer_high": 0.25, "wer_of_another_sentence": 1.0}
    assert metrics.with_intervals(figures) == {
        "wer": "12.5 % (0.0 to 25.0)",
        "wer_of_another_sentence": "100.0 %",
    }


def test_unit_error_rate():
    said = [Response("", "", [5, 9, 7, 1]), Response("", "", [2, 3])]
    spoken = [Response("", "", [5, 9, 8]), Response("", "", [2, 3])]
    figures = metrics.unit_error_rate(said, spoken)
    assert figures["unit_error_rate"] == pytest.approx(2 / 6)
    assert figures["unit_error_rate_of_another_sentence"] > 1 / 3


def test_no_reference():
    with pytest.raises(ValueError, match="No reference has any words"):
        metrics.wer(["", ""], ["a", "b"])


def test_answers_are_normalised_alike():
    assert metrics.normalize("What's  IT, then?") == "what's it then"
