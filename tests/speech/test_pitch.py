"""Pitch tracked in synthetic vowels, and pulse trains of a given pitch."""

import jax
import numpy as np
import pytest
import scipy.signal

from speechgpt_jax.speech import pitch
from speechgpt_jax.speech.pitch import track_pitch

RATE, HOP = 16_000, 320

pulse_train = jax.jit(pitch.pulse_train, static_argnums=(2, 3))


def vowel(hz: np.ndarray) -> np.ndarray:
    """Pulses at the pitch of each frame through two formants."""
    wav = np.asarray(pulse_train(hz[None].astype(np.float32), np.ones((1, len(hz))), RATE, HOP))[0]
    for formant, width in ((700, 100), (1300, 120)):
        radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * formant / RATE
        wav = scipy.signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], wav)
    return (0.1 * wav / wav.std()).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("contour", [(90, 90), (210, 210), (180, 120), (75, 110)])
def test_tracks_a_vowel(contour):
    hz = np.linspace(*contour, 60)
    tracked, voiced = track_pitch(vowel(hz), RATE, HOP)
    assert tracked.shape == voiced.shape == (60,)
    assert voiced[3:-3].all()
    # A frame's pitch is that of its middle.
    middle = hz + (hz[1] - hz[0]) / 2
    np.testing.assert_allclose(tracked[3:-3], middle[3:-3], rtol=0.015)


def test_noise_and_silence_are_not_voiced():
    noise = 0.1 * np.random.default_rng(0).standard_normal(60 * HOP).astype(np.float32)
    assert track_pitch(noise, RATE, HOP)[1].mean() < 0.05
    hz, voiced = track_pitch(np.zeros(60 * HOP, np.float32), RATE, HOP)
    assert not voiced.any()
    assert np.isfinite(hz).all()


@pytest.mark.slow
def test_unvoiced_frames_take_their_neighbours_pitch():
    wav = vowel(np.full(60, 120.0))
    wav[20 * HOP : 40 * HOP] = 0
    hz, voiced = track_pitch(wav, RATE, HOP)
    assert not voiced[22:38].any()
    np.testing.assert_allclose(hz[22:38], 120, rtol=0.02)


@pytest.mark.slow
def test_pulses_come_at_the_pitch_with_unit_power():
    hz = np.full((1, 50), 125.0, np.float32)
    voiced = np.ones((1, 50), np.float32)
    voiced[0, 30:] = 0
    wav = np.asarray(pulse_train(hz, voiced, RATE, HOP))[0]
    np.testing.assert_allclose((wav[: 30 * HOP] ** 2).mean(), 1, rtol=0.02)
    assert not wav[30 * HOP :].any()
    peaks, _ = scipy.signal.find_peaks(wav, height=0.5 * wav.max())
    np.testing.assert_array_equal(np.diff(peaks), 128)
    # All harmonics are equally strong, up to half the sampling rate.
    spectrum = np.abs(np.fft.rfft(wav[: 26 * HOP]))  # 65 periods.
    harmonics = spectrum[65::65]
    np.testing.assert_allclose(harmonics[:60], harmonics[0], rtol=0.05)


@pytest.mark.slow
def test_an_absurd_pitch_makes_finite_pulses():
    hz = np.array([[0.0, 1e-9, 1e9, 7000.0]], np.float32)
    assert np.isfinite(pulse_train(hz, np.ones_like(hz), RATE, HOP)).all()


@pytest.mark.slow
def test_pulses_follow_a_moving_pitch():
    """The number of pulses is the integral of the pitch."""
    hz = np.linspace(100, 200, 100)[None].astype(np.float32)
    wav = np.asarray(pulse_train(hz, np.ones_like(hz), RATE, HOP))[0]
    peaks, _ = scipy.signal.find_peaks(wav, height=0.35 * wav.max())
    assert abs(len(peaks) - hz.mean() * 2) <= 2
