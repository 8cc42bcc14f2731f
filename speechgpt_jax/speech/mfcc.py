"""Mel-frequency cepstral coefficients, which HuBERT's first iteration clusters."""

import numpy as np
import scipy.fft

from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.mel import mel_filterbank
from speechgpt_jax.speech.recordings import HOP, WINDOW, num_frames

N_FFT, NUM_MELS, NUM_COEFFICIENTS = 512, 40, 13


def mfcc(wav: np.ndarray) -> np.ndarray:
    """wav [S] at 16 kHz -> [T, 39] float32: 13 coefficients, their first and second differences.

    Each coefficient has mean 0 over the recording.
    """
    count = num_frames(len(wav))
    if count == 0:
        return np.zeros((0, 3 * NUM_COEFFICIENTS), np.float32)
    starts = np.arange(count)[:, None] * HOP
    frames = wav[starts + np.arange(WINDOW)] * np.hamming(WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames, N_FFT)))
    mel = np.log(power @ mel_filterbank(SAMPLE_RATE, N_FFT, NUM_MELS, 20.0, 8_000.0) + 1e-10)
    cepstra = scipy.fft.dct(mel, norm="ortho")[:, :NUM_COEFFICIENTS]
    cepstra = cepstra - cepstra.mean(0)
    if count == 1:
        deltas = [np.zeros_like(cepstra)] * 2
    else:
        first = np.gradient(cepstra, axis=0)
        deltas = [first, np.gradient(first, axis=0)]
    return np.concatenate([cepstra, *deltas], axis=1).astype(np.float32)
