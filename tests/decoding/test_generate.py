"""Generation against `transformers`; stop tokens, limits and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.models.llama import Llama
from tests.models.hugging_face import CONFIG, reference, to_jax

PROMPTS = [[1, 40, 17, 99, 8], [1, 3], [1, *range(5, 30)]]


@pytest.fixture(scope="module")
def model():
    return Llama(CONFIG, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_greedy_equals_transformers():
    """100 tokens after prompts of unequal length, padded on the left in both."""
    theirs = reference(CONFIG)
    ours = to_jax(CONFIG, theirs)
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    expected = theirs.generate(
        padded,
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS]),
        max_new_tokens=100,
        do_sample=False,
        eos_token_id=None,
    )
    tokens, lengths = generate(ours, PROMPTS, max_new_tokens=100, stop_ids=[], sampling=GREEDY)
    np.testing.assert_array_equal(tokens, expected[:, longest:].numpy())
    np.testing.assert_array_equal(lengths, 100)


@pytest.mark.slow
def test_greedy_equals_the_uncached_model(model):
    prompt = PROMPTS[0]
    tokens, _ = generate(model, [prompt], max_new_tokens=10, stop_ids=[], sampling=GREEDY)
    logits = nnx.jit(lambda model, tokens: model.unembed(model(tokens)))(
        model, jnp.array([prompt + tokens[0].tolist()])
    )
    expected = np.argmax(logits[0], axis=-1)
    np.testing.assert_array_equal(tokens[0], expected[len(prompt) - 1 : -1])


@pytest.mark.slow
def test_stops_at_each_rows_own_stop_token(model):
    free, _ = generate(model, PROMPTS, max_new_tokens=20, stop_ids=[], sampling=GREEDY)
    stop_ids = [int(free[0, 4]), int(free[1, 9])]
    tokens, lengths = generate(
        model, PROMPTS, max_new_tokens=20, stop_ids=stop_ids, sampling=GREEDY
    )
    for row, length, answer in zip(free, lengths, tokens, strict=True):
        stops = np.flatnonzero(np.isin(row, stop_ids))
        assert length == (stops[0] if len(stops) else 20)
        np.testing.assert_array_equal(answer[:length], row[:length])


@pytest.mark.slow
def test_min_new_tokens_bans_the_stop_token_until_then(model):
    stop_ids = range(CONFIG.vocab_size // 2)
    arguments = {"max_new_tokens": 12, "stop_ids": stop_ids, "min_new_tokens": 6}
    tokens, lengths = generate(model, PROMPTS, **arguments)
    assert lengths.min() >= 6
    assert not np.isin(tokens[:, :6], stop_ids).any()


@pytest.mark.slow
def test_never_draws_forbidden_or_padding_tokens(model):
    forbidden = range(0, CONFIG.vocab_size, 2)
    flat = Sampling(temperature=100.0, top_k=0, top_p=1.0)
    tokens, _ = generate(
        model, PROMPTS, max_new_tokens=50, stop_ids=[], sampling=flat, forbidden_ids=forbidden
    )
    assert not np.isin(tokens, forbidden).any()
    assert tokens.max() < CONFIG.vocab_size
    assert len(np.unique(tokens)) > 40


@pytest.mark.slow
def test_a_key_repeats_its_draws(model):
    draw = lambda seed: generate(  # noqa: E731
        model, PROMPTS, max_new_tokens=8, stop_ids=[], key=jax.random.key(seed)
    )[0]
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


@pytest.mark.parametrize(
    "prompts, stop_ids, message",
    [
        ([], [2], "at least one prompt"),
        ([[1], []], [2], "A prompt is empty"),
        ([[1, 150]], [2], r"must lie in 0..149, got 1..150"),
        ([[1]], [-1], r"must lie in 0..149, got -1..-1"),
    ],
)
def test_impossible_requests(model, prompts, stop_ids, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens=1, stop_ids=stop_ids)
