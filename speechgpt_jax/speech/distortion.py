"""Augmentation: simulated rooms and microphones."""

import numpy as np
import scipy.signal

from speechgpt_jax.speech.audio import SAMPLE_RATE

# Probability of each distortion that is not always there.
REVERBERATION_SHARE = BAND_SHARE = 0.3


def distort(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """Simulates another room and microphone: wav [S] at 16 kHz -> float32 [S].

    Level, spectral tilt, one resonance or notch, and noise (white to brown, 10 to 50 dB below the
    speech) are drawn at random; sometimes also reverberation and a narrower band of frequencies.
    """
    tilt, (radius, angle) = rng.uniform(-0.5, 0.5), rng.uniform((0.0, 0.1), (0.8, 3.0))
    resonance = [1.0, -2 * radius * np.cos(angle), radius**2]
    numerator, denominator = ([1.0, tilt], resonance)
    if rng.random() < 0.5:  # A notch instead of a peak.
        numerator, denominator = np.convolve(numerator, resonance), [1.0]
    out = scipy.signal.lfilter(numerator, denominator, wav)
    if rng.random() < REVERBERATION_SHARE:
        out = reverberate(rng, out)
    if rng.random() < BAND_SHARE:
        band = np.exp(rng.uniform(np.log((50, 3_000)), np.log((400, 7_500))))
        out = scipy.signal.sosfilt(
            scipy.signal.butter(3, band, "bandpass", fs=SAMPLE_RATE, output="sos"), out
        )
    out *= rng.uniform(0.1, 0.3) / (np.abs(out).max() + 1e-6)
    noise = scipy.signal.lfilter([1.0], [1.0, -rng.uniform(0, 0.95)], rng.standard_normal(len(out)))
    decibels = rng.uniform(10, 50)
    noise *= 10 ** (-decibels / 20) * np.sqrt(np.square(out).mean() / np.square(noise).mean())
    return (out + noise).astype(np.float32)


def reverberate(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """wav [S] at 16 kHz -> [S] with a room's echoes: exponentially decaying noise (Moorer 1979)."""
    decay = rng.uniform(0.1, 0.5) * SAMPLE_RATE  # samples until the echoes are down by 60 dB
    times = np.arange(int(decay))
    echoes = rng.standard_normal(len(times)) * 10 ** (-3 * times / decay)
    echoes *= 10 ** (-rng.uniform(3, 15) / 20) / np.linalg.norm(echoes)
    echoes[0] += 1.0
    return scipy.signal.fftconvolve(wav, echoes)[: len(wav)]
