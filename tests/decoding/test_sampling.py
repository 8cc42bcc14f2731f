"""Sampling against a plain numpy oracle: probabilities, and frequencies of drawn tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.decoding.sampling import GREEDY, Sampling

LOGITS = np.array([0.3, 2.0, -1.0, 1.4, 0.0, 1.9, -3.0, 0.8], np.float32)


def oracle(logits, sampling):
    """Probabilities after temperature, then top-k, then top-p, token by token."""
    order = np.argsort(-logits)
    weights = np.exp(logits / sampling.temperature)
    kept = order[: sampling.top_k] if sampling.top_k else order
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept] / weights[kept].sum()
    nucleus = []
    for token in kept:
        nucleus.append(token)
        if probabilities[nucleus].sum() >= sampling.top_p:
            break
    result = np.zeros_like(weights)
    result[nucleus] = weights[nucleus] / weights[nucleus].sum()
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0, top_p=1.0),
        Sampling(temperature=0.5, top_k=0, top_p=1.0),
        Sampling(temperature=1.0, top_k=3, top_p=1.0),
        Sampling(temperature=1.0, top_k=0, top_p=0.8),
        Sampling(temperature=2.0, top_k=5, top_p=0.7),
        Sampling(temperature=1.0, top_k=100, top_p=0.01),
    ],
    ids=str,
)
def test_frequencies_are_the_oracles_probabilities(sampling):
    draws = 20_000
    tokens = sampling(jnp.tile(LOGITS, (draws, 1)), jax.random.key(0))
    frequencies = np.bincount(tokens, minlength=len(LOGITS)) / draws
    expected = oracle(LOGITS, sampling)
    assert (expected[frequencies > 0] > 0).all()
    np.testing.assert_allclose(frequencies, expected, atol=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=1), Sampling(top_p=1e-6)], ids=str)
def test_greedy_takes_the_most_likely_token(sampling):
    logits = jax.random.normal(jax.random.key(1), (50, 30))
    tokens = sampling(logits, jax.random.key(0))
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


def test_never_draws_a_forbidden_token():
    logits = jnp.tile(jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf]), (1000, 1))
    tokens = Sampling(temperature=1.0, top_k=0, top_p=1.0)(logits, jax.random.key(0))
    assert set(np.unique(tokens)) == {0, 2}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": -1.0}, "temperature -1.0 must be at least 0"),
        ({"temperature": float("nan")}, "temperature nan must be at least 0"),
        ({"temperature": float("inf")}, "temperature inf must be at least 0"),
        ({"top_p": 2.0}, "top_p 2.0 must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p nan must be above 0"),
        ({"top_k": -1}, "top_k -1 must be at least 0"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0 and at most 1"),
    ],
)
def test_impossible_values(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
