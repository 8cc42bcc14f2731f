"""Training text of the shipped tokenizer."""

import re

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions
from speechgpt_jax.demo_world import world
from speechgpt_jax.tokenizer import any_of

# Copies of each part of a template, so that its words become single pieces.
TEMPLATE_REPEATS = 20


def sentences() -> list[str]:
    """Training texts of the demo world, and all templates with all descriptions.

    Templates are split at the added tokens, as the tokenizer does.
    """
    templates = [
        prompts.CROSS_MODAL.format(description=description, source="<sosp>", target="<sosp>")
        for description in descriptions.ASR + descriptions.TTS
    ] + [prompts.SPEECH_TO_SPEECH, prompts.SPEECH_TO_TEXT, prompts.TEXT_TO_SPEECH]
    cut = re.compile(any_of(prompts.MARKERS) + r"|\{\w+\}").split
    pieces = [piece.strip() for template in templates for piece in cut(template)]
    pieces.append(prompts.DEFAULT_PREFIX.strip())
    texts = [sentence.text for sentence in world.all_sentences() if sentence.split == "train"]
    return texts + TEMPLATE_REPEATS * [piece for piece in pieces if piece]
