"""SeqIO metric functions: targets and predictions, lists of `prompts.Response` -> {name: value}."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jiwer
import numpy as np
import numpy.typing as npt

from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import Response, Template
from speechgpt_jax.unit_text import UNIT

# Bootstrap samples behind each interval.
RESAMPLES = 1_000


def response_parser(template: Template) -> Callable[..., Response]:
    """The postprocessor of every dialogue task: parses the text of a target or prediction."""
    return lambda text, **unused: template.parse(text)


def word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Word error rate, and that of a control: each reference with the next example's transcript.

    The two are close for a model that ignores the speech and writes sentences that it knows.
    """
    references = [normalize(target.text) for target in targets]
    transcripts = [normalize(prediction.text) for prediction in predictions]
    another = wer(references, transcripts[1:] + transcripts[:1])["wer"]
    return wer(references, transcripts) | {"wer_of_another_sentence": another}


def question_word_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Word error rate of the question's transcript, the first part of a chain of modality."""
    references = [normalize(target.question) for target in targets]
    transcripts = [normalize(prediction.question) for prediction in predictions]
    return wer(references, transcripts, "question_wer")


def answer_accuracy(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Share of text answers whose words are all correct."""
    right = [
        normalize(target.text) == normalize(prediction.text)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return rate("answer_accuracy", right, np.ones(len(right)))


def unit_error_rate(
    targets: Sequence[Response], predictions: Sequence[Response]
) -> dict[str, float]:
    """Unit edits per reference unit, and those of a control, as in `word_error_rate`.

    The same text may be spoken with other units, so a rate of 0 can't be expected.
    """
    references = [" ".join(map(str, target.units)) for target in targets]
    units = [" ".join(map(str, prediction.units)) for prediction in predictions]
    another = wer(references, units[1:] + units[:1])["wer"]
    figures = wer(references, units, "unit_error_rate")
    return figures | {"unit_error_rate_of_another_sentence": another}


def form_errors(targets: Sequence[Response], predictions: Sequence[Response]) -> dict[str, float]:
    """Share of responses that lack a part of the target (question, text, units) or add one.

    Such a model confuses its tasks: it answers what it should transcribe, or the reverse. Units in
    the middle of a text are wrong too.
    """
    wrong = [
        _parts(target) != _parts(prediction)
        or UNIT.search(prediction.question + prediction.text) is not None
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return rate("form_error", wrong, np.ones(len(wrong)))


def _parts(response: Response) -> tuple[bool, bool, bool]:
    return bool(response.question), bool(response.text), bool(response.units)


def wer(references: list[str], predictions: list[str], name: str = "wer") -> dict[str, float]:
    """Word edits per reference word, as in `rate`; 1.0 if all predictions are empty.

    Examples whose reference has no words are left out.

    Raises:
      UserError: no reference has words.
    """
    kept = [(r, p) for r, p in zip(references, predictions, strict=True) if normalize(r)]
    if not kept:
        raise UserError(
            "No reference has any words or units; evaluate a task whose targets have what its"
            " metrics compare."
        )
    return rate(name, *zip(*(word_errors(reference, prediction) for reference, prediction in kept)))


def word_errors(reference: str, transcript: str) -> tuple[int, int]:
    """Number of word edits, number of words of the reference; without case and punctuation."""
    result = jiwer.process_words(normalize(reference), normalize(transcript))
    edits = result.substitutions + result.deletions + result.insertions
    return edits, result.hits + result.substitutions + result.deletions


def check_references(rows: Iterable[Mapping]) -> None:
    """Raises a UserError if the `text` of a recording's row has no words."""
    for row in rows:
        if not normalize(row["text"]):
            raise UserError(
                f"{row['path']}: the text {row['text']!r} has no words; word error rate needs some."
            )


def rate(name: str, counts: npt.ArrayLike, totals: npt.ArrayLike) -> dict[str, float]:
    """Sum of `counts` per sum of `totals`, one of each per example, with its 95 % interval.

    The interval is that of the bootstrap over examples (Efron 1979): `counts` [1, 0, 0, 1] of
    `totals` [4, 4, 4, 4] are {"wer": 0.125, "wer_low": 0.0, "wer_high": 0.25}.
    """
    counts = np.asarray(counts, float)
    totals = np.asarray(totals, float)
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    rates = counts[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975])
    figures = {"": counts.sum() / totals.sum(), "_low": low, "_high": high}
    return {name + suffix: float(value) for suffix, value in figures.items()}


def with_intervals(figures: Mapping[str, float]) -> dict[str, str]:
    """Figures as text, with their intervals: {"wer": "12.5 % (0.0 to 25.0)"}."""
    texts = {}
    for name, value in figures.items():
        if name.removesuffix("_low").removesuffix("_high") in figures.keys() - {name}:
            continue
        texts[name] = f"{100 * value:.1f} %"
        if f"{name}_low" in figures:
            low, high = figures[f"{name}_low"], figures[f"{name}_high"]
            texts[name] += f" ({100 * low:.1f} to {100 * high:.1f})"
    return texts


def normalize(text: str) -> str:
    """`"What is it?"` -> `"what is it"`."""
    return " ".join(re.findall(r"[\w']+", text.lower()))
