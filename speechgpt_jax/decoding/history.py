"""Turns of a history as the text that a model reads."""

from collections.abc import Sequence

from speechgpt_jax import prompts
from speechgpt_jax.unit_text import units_to_text


def turn_text(prompt: str, response: str) -> str:
    """A turn: its prompt and the response that followed."""
    return f"{prompt} {response.strip()}{prompts.END_OF_ANSWER}. "


def answer_text(text: str, units: Sequence[int]) -> str:
    """The answer in a response, as text and perhaps as units too."""
    return f"{text}; {prompts.UNIT_ANSWER} {units_to_text(units)}" if units else text


def shortened(whole: str, text: str, units: Sequence[int]) -> str:
    """A turn whose answer aloud was heard only up to some words and units.

    Without a word it is empty, as if it had never been.
    """
    before, _, _ = whole.rpartition(prompts.TEXT_ANSWER)
    return turn_text(before + prompts.TEXT_ANSWER, answer_text(text, units)) if text else ""
