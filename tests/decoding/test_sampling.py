"""Sampling against the logits processors of `transformers`, applied to the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.decoding.sampling import (
    FEW,
    GREEDY,
    Sampling,
    SamplingArrays,
    penalize,
    sample,
)

FEW_TOKENS = np.array([0.3, 2.0, -1.0, 1.4, 0.0, 1.9, -3.0, 0.8], np.float32)
MANY_TOKENS = np.random.default_rng(0).normal(0, 2, FEW + 40).astype(np.float32)
SEEN = [1, 2, 6]


def probabilities(logits, sampling):
    """Probabilities of the tokens after the processors of `transformers`, with SEEN in the text."""
    import torch
    import transformers

    processors = [
        transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        transformers.TemperatureLogitsWarper(sampling.temperature),
        transformers.TopKLogitsWarper(sampling.top_k or len(logits)),
        transformers.TopPLogitsWarper(sampling.top_p),
        transformers.MinPLogitsWarper(sampling.min_p),
    ]
    scores = torch.tensor(logits)[None]
    scores = transformers.LogitsProcessorList(processors)(torch.tensor([SEEN]), scores)
    return torch.softmax(scores[0], -1).numpy()


def batch(samplings) -> SamplingArrays:
    arrays = [sampling.arrays() for sampling in samplings]
    return jax.tree.map(lambda *values: np.stack(values), *arrays)


@jax.jit
def draw(logits, sampling, key):
    seen = jnp.zeros(logits.shape, bool).at[:, jnp.array(SEEN)].set(True)
    logits = penalize(logits, seen, sampling.repetition_penalty)
    return sample(logits, sampling, jax.random.split(key, len(logits)))


@pytest.mark.slow
@pytest.mark.parametrize("logits", [FEW_TOKENS, MANY_TOKENS], ids=["few", "many"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0, top_p=1.0),
        Sampling(temperature=0.5, top_k=0, top_p=1.0),
        Sampling(temperature=1.0, top_k=3, top_p=1.0),
        Sampling(temperature=1.0, top_k=0, top_p=0.8),
        Sampling(temperature=2.0, top_k=5, top_p=0.7),
        Sampling(temperature=1.0, top_k=100, top_p=0.01),
        Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.3),
        Sampling(temperature=1.5, top_k=0, top_p=0.9, min_p=0.1, repetition_penalty=1.7),
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities_of_transformers(logits, sampling):
    draws = 20_000
    tokens = draw(jnp.tile(logits, (draws, 1)), batch([sampling] * draws), jax.random.key(0))
    frequencies = np.bincount(tokens, minlength=len(logits)) / draws
    expected = probabilities(logits, sampling)
    assert (expected[frequencies > 0] > 0).all()
    np.testing.assert_allclose(frequencies, expected, atol=0.015)


@pytest.mark.slow
def test_the_penalty_is_that_of_transformers():
    import torch
    import transformers

    seen = np.isin(np.arange(len(FEW_TOKENS)), SEEN)
    penalized = penalize(FEW_TOKENS[None], seen[None], jnp.array([1.3]))
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([SEEN]), torch.tensor(FEW_TOKENS)[None])
    np.testing.assert_allclose(penalized, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=1), Sampling(top_p=1e-6)], ids=str)
def test_greedy_takes_the_most_likely_token(sampling):
    logits = jax.random.normal(jax.random.key(1), (50, 30))
    tokens = sample(logits, batch([sampling] * 50), jax.random.split(jax.random.key(0), 50))
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


@pytest.mark.slow
def test_a_draw_does_not_depend_on_the_settings_of_other_rows():
    """The others decide whether all tokens are sorted, the FEW most likely ones or none."""
    logits = jax.random.normal(jax.random.key(1), (200, 300))
    keys = jax.random.split(jax.random.key(2), 200)
    few = Sampling(temperature=2.0, top_k=40, top_p=0.9)
    expected = sample(logits, batch([few] * 200), keys)
    for other in (GREEDY, Sampling(top_k=0)):
        mixed = sample(logits, batch([few, other] * 100), keys)
        np.testing.assert_array_equal(mixed[::2], expected[::2])


def test_never_draws_a_forbidden_token():
    logits = jnp.tile(jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf]), (1000, 1))
    sampling = batch([Sampling(temperature=1.0, top_k=0, top_p=1.0)] * 1000)
    tokens = sample(logits, sampling, jax.random.split(jax.random.key(0), 1000))
    assert set(np.unique(tokens)) == {0, 2}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": -1.0}, "temperature -1.0 must be at least 0"),
        ({"temperature": float("nan")}, "temperature nan must be finite and at least 0"),
        ({"temperature": float("inf")}, "temperature inf must be finite and at least 0"),
        ({"top_p": 2.0}, "top_p 2.0 must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p nan must be finite and above 0"),
        ({"top_k": -1}, "top_k -1 must be at least 0"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p 1.5 must be at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0 must be above 0"),
    ],
)
def test_impossible_values(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
