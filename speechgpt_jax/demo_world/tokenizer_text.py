"""The text that the shipped tokenizer is trained on."""

import re

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions
from speechgpt_jax.demo_world import world
from speechgpt_jax.tokenizer import any_of

# How often each piece of a template stands in the text, so that its words become single pieces.
TEMPLATE_REPEATS = 20


def sentences() -> list[str]:
    """The training texts of the demo world, and every template around every description.

    The templates come in the pieces that the tokenizer will cut them into at its added tokens.
    """
    templates = [
        prompts.CROSS_MODAL.format(description=description, source="<sosp>", target="<sosp>")
        for description in descriptions.ASR + descriptions.TTS
    ] + [prompts.SPEECH_TO_SPEECH, prompts.SPEECH_TO_TEXT, prompts.TEXT_TO_SPEECH]
    cut = re.compile(any_of(prompts.ROLE_TOKENS) + r"|\{\w+\}").split
    pieces = [piece.strip() for template in templates for piece in cut(template)]
    pieces.append(prompts.DEFAULT_PREFIX.strip())
    texts = [sentence.text for sentence in world.all_sentences() if sentence.split == "train"]
    return texts + TEMPLATE_REPEATS * [piece for piece in pieces if piece]
