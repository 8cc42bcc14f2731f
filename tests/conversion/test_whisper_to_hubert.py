"""Whisper's encoder as a HuBERT: the same convolutions, and nearly the same features."""

import dataclasses
import sys

import numpy as np
import pytest

from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures
from tools import hubert_targets, whisper_to_hubert
from tools.whisper_to_hubert import convert, least_squares

WHOLE = dataclasses.replace(
    HubertConfig.whisper_tiny(), attention_frames=None, projection_size=None, projection_reach=0
)


@pytest.fixture(scope="module")
def teacher():
    return WhisperFeatures(4)


@pytest.fixture(scope="module")
def wav():
    """A person says something."""
    return load_audio(sorted((SHIPPED.parent / "corpus" / "clips").glob("*-human.flac"))[0])


def test_without_bounds_it_hears_as_whisper_does(teacher, wav):
    hubert = convert(teacher.variables, WHOLE)
    (ours,) = Speech2Unit(hubert, None).features([wav])
    (theirs,) = teacher([wav])
    assert ours.shape == theirs.shape
    # Both have variance 1: what is left is the peak's level, the edges and the rounded periods.
    assert np.square(ours - theirs)[5:-5].mean() < 0.1


def test_with_bounds_it_hears_nearly_as_whisper_does(teacher, wav):
    bound = dataclasses.replace(
        WHOLE, attention_frames=HubertConfig.whisper_tiny().attention_frames
    )
    (ours,) = Speech2Unit(convert(teacher.variables, bound), None).features([wav])
    assert np.square(ours - teacher([wav])[0]).mean() < 0.5


def test_the_projection_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((4, 2)), rng.standard_normal(2)
    clips = [np.full(n, 100, np.int16) for n in (30, 50, 90)]

    def hear(wavs):
        return [rng.standard_normal((len(wav), 4)) for wav in wavs]

    heard = hear(clips)
    targets = [x @ kernel + bias for x in heard]
    order = np.random.default_rng(0).permutation(3)
    found = least_squares(lambda wavs: [heard[i] for i in order], clips, targets)
    np.testing.assert_allclose(found[0], kernel, atol=1e-4)
    np.testing.assert_allclose(found[1], bias, atol=1e-4)


def test_other_targets_give_one_clear_line(tmp_path, monkeypatch):
    clips = [hubert_targets.Clip(np.zeros(800, np.float32))]
    hubert_targets.write(clips, [np.zeros((2, 5), np.float16)], tmp_path / "targets")
    arguments = ["whisper_to_hubert", str(tmp_path / "out"), f"--targets={tmp_path}/targets"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"targets of \[2, 5\] a clip; expected \[frames, 37\]"):
        whisper_to_hubert.main()
    assert not (tmp_path / "out").exists()
