"""SeqIO metric functions over what was said and what should have been said.

All take two lists of `prompts.Response` and give a dict of figures.
"""

import re
from collections.abc import Sequence

import jiwer
import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import Response, parse_response


def read_response(text: str, **unused) -> Response:
    """The postprocessor of every dialogue task, for targets and predictions alike."""
    return parse_response(text)


def word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Of the transcripts, with a control: each against the next sentence's transcript.

    A model that fills in sentences it knows, whatever it hears, has the two close together.
    """
    said = [normalize(target.text) for target in targets]
    heard = [normalize(prediction.text) for prediction in predictions]
    return {"wer": wer(said, heard), "wer_of_another_sentence": wer(said, heard[1:] + heard[:1])}


def question_word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Of the transcript with which a chain of modality begins."""
    said = [normalize(target.question) for target in targets]
    heard = [normalize(prediction.question) for prediction in predictions]
    return {"question_wer": wer(said, heard)}


def answer_accuracy(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """The share of text answers that are right word by word."""
    right = [
        normalize(target.text) == normalize(prediction.text)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return {"answer_accuracy": float(np.mean(right))}


def unit_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Edits a unit of the recorded speech; the same text can well be said in other units."""
    said = [" ".join(map(str, target.units)) for target in targets]
    spoken = [" ".join(map(str, prediction.units)) for prediction in predictions]
    return {
        "unit_error_rate": wer(said, spoken),
        "unit_error_rate_of_another_sentence": wer(said, spoken[1:] + spoken[:1]),
    }


def wer(said: list[str], heard: list[str]) -> float:
    """Word edits over the number of words said; 1.0 is as bad as silence."""
    kept = [(s, h) for s, h in zip(said, heard, strict=True) if s]
    if not kept:
        raise UserError("No reference has any words.")
    said, heard = map(list, zip(*kept))
    return float(jiwer.wer(said, heard))


def normalize(text: str) -> str:
    """`"What is it?"` -> `"what is it"`."""
    return " ".join(re.findall(r"[\w']+", text.lower()))
