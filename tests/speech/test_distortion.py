"""Distorted speech keeps its length and level, and echoes follow the sound."""

import numpy as np

from speechgpt_jax.speech.distortion import distort, reverberate


def test_distorted_speech_stays_finite_and_loud():
    rng, wav = np.random.default_rng(0), np.random.default_rng(1).standard_normal(8_000)
    for _ in range(30):
        out = distort(rng, wav)
        assert out.shape == wav.shape and out.dtype == np.float32
        assert 0.05 < np.abs(out).max() < 0.8


def test_echoes_come_after_the_sound():
    impulse = np.zeros(8_000)
    impulse[1_000] = 1
    out = reverberate(np.random.default_rng(0), impulse)
    assert np.abs(out[:1_000]).max() < 1e-9
    assert np.abs(out).argmax() == 1_000
    energy = np.square(out[1_001:])
    assert 10**-1.5 < energy.sum() < 10**-0.3
    assert energy[:1_000].sum() > 3 * energy[2_000:3_000].sum()
