"""Training text of the shipped tokenizer."""

from speechgpt_jax import prompts
from speechgpt_jax.demo_world import world
from speechgpt_jax.demo_world.tokenizer_text import TEMPLATE_REPEATS, sentences


def test_it_holds_training_sentences_and_templates_without_role_tokens():
    texts = sentences()
    train = {s.text for s in world.all_sentences() if s.split == "train"}
    held_out = {s.text for s in world.all_sentences()} - train
    assert train <= set(texts)
    assert held_out and not held_out & set(texts)
    assert texts.count(prompts.DEFAULT_PREFIX.strip()) == TEMPLATE_REPEATS
    assert not any(token in text for text in texts for token in prompts.MARKERS)
