"""Whisper's encoder as a HuBERT: the same convolutions, and nearly the same features."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.hubert_config import HubertConfig
from speechgpt_jax.speech.speech2unit import SHIPPED, Speech2Unit
from tools.whisper_features import WhisperFeatures
from tools.whisper_to_hubert import convert, gelu_moments

WHOLE = dataclasses.replace(HubertConfig.tiny(), intermediate_size=1536, attention_frames=None)


@pytest.fixture(scope="module")
def teacher():
    return WhisperFeatures(blocks=3)


@pytest.fixture(scope="module")
def wav():
    """A person says something."""
    return load_audio(sorted((SHIPPED.parent / "corpus" / "clips").glob("*-human.flac"))[0])


def test_with_all_its_neurons_it_hears_as_whisper_does(teacher, wav):
    hubert = convert(teacher.variables, WHOLE)
    (ours,) = Speech2Unit(hubert, None).features([wav])
    (theirs,) = teacher([wav])
    assert ours.shape == theirs.shape
    # Both have variance 1: what is left is the peak's level, the edges and the rounded periods.
    assert np.square(ours - theirs)[5:-5].mean() < 0.1


def test_pruned_it_is_nearer_than_a_fresh_one(teacher, wav):
    hubert = convert(teacher.variables, HubertConfig.tiny())
    (ours,) = Speech2Unit(hubert, None).features([wav])
    assert np.square(ours - teacher([wav])[0]).mean() < 0.5


def test_moments_of_gelu_are_the_integrals():
    def gelu(x):
        return x * stats.norm.cdf(x)

    for mean, deviation in [(0.0, 1.0), (-1.5, 0.7), (2.0, 3.0)]:
        expected = stats.norm(mean, deviation).expect
        first, second = expected(gelu), expected(lambda x: gelu(x) ** 2)
        ours = gelu_moments(np.array([mean]), np.array([deviation]))
        np.testing.assert_allclose(np.ravel(ours), [first, np.sqrt(second - first**2)], rtol=1e-4)
