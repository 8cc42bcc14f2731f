"""SeqIO metric functions: targets and predictions, lists of `prompts.Response` -> {name: value}."""

import re
from collections.abc import Sequence

import jiwer
import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import Response, parse_response


def read_response(text: str, **unused) -> Response:
    """Parses the text of a target or prediction: the postprocessor of every dialogue task."""
    return parse_response(text)


def word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Word error rate, and that of a control: each reference with the next example's transcript.

    The two are close for a model that ignores the speech and writes sentences that it knows.
    """
    references = [normalize(target.text) for target in targets]
    transcripts = [normalize(prediction.text) for prediction in predictions]
    return {
        "wer": wer(references, transcripts),
        "wer_of_another_sentence": wer(references, transcripts[1:] + transcripts[:1]),
    }


def question_word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Word error rate of the question's transcript, the first part of a chain of modality."""
    references = [normalize(target.question) for target in targets]
    transcripts = [normalize(prediction.question) for prediction in predictions]
    return {"question_wer": wer(references, transcripts)}


def answer_accuracy(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Share of text answers whose words are all right."""
    right = [
        normalize(target.text) == normalize(prediction.text)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return {"answer_accuracy": float(np.mean(right))}


def unit_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Unit edits per reference unit, and those of a control, as in `word_error_rate`.

    The same text may be spoken with other units, so a rate of 0 can't be expected.
    """
    references = [" ".join(map(str, target.units)) for target in targets]
    units = [" ".join(map(str, prediction.units)) for prediction in predictions]
    return {
        "unit_error_rate": wer(references, units),
        "unit_error_rate_of_another_sentence": wer(references, units[1:] + units[:1]),
    }


def wer(references: list[str], predictions: list[str]) -> float:
    """Word edits per reference word; 1.0 if all predictions are empty.

    Raises:
      UserError: all references are empty.
    """
    kept = [(r, p) for r, p in zip(references, predictions, strict=True) if r]
    if not kept:
        raise UserError(
            "No reference has any words or units; evaluate a task whose targets have what its"
            " metrics compare."
        )
    references, predictions = map(list, zip(*kept))
    return float(jiwer.wer(references, predictions))


def normalize(text: str) -> str:
    """`"What is it?"` -> `"what is it"`."""
    return " ".join(re.findall(r"[\w']+", text.lower()))
