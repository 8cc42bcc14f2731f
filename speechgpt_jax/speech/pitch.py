"""Pitch (fundamental frequency) of speech, and pulse trains that follow a pitch.

Shapes: B batch, T frames, S = T * hop samples.
"""

import jax
import jax.numpy as jnp
import numpy as np

MIN_HZ, MAX_HZ = 60.0, 400.0
# Similarity of a frame to itself one period later, above which it counts as voiced.
VOICING = 0.5
# Cost, in similarity, of a change of pitch by one octave between frames.
OCTAVE_COST = 2.0


def track_pitch(wav: np.ndarray, sampling_rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch of each frame of clean speech: wav [S] -> pitch in Hz [T], voiced [T] (bool).

    Normalised cross-correlation of a 30 ms window with the window one lag later; the span of the
    two at the longest lag is centred on the frame. Then the best path through the lags over the
    whole recording (RAPT, Talkin 1995). Between voiced frames the pitch is interpolated; in a
    recording without voiced frames it is 120 Hz.

    Args:
      wav: samples in [-1, 1].
      sampling_rate: samples per second, in Hz.
      hop: samples per frame.
    """
    similarity = _similarity(wav, sampling_rate, hop)
    lags = np.geomspace(sampling_rate / MAX_HZ, sampling_rate / MIN_HZ, 96).round().astype(int)
    path = lags[_best_path(similarity[:, lags], np.log2(lags))]
    frames = np.arange(len(path))
    voiced = similarity[frames, path] > VOICING
    if not voiced.any():
        return np.full(len(path), 120.0, np.float32), voiced
    hz = sampling_rate / _peak_near(similarity, path)
    return np.interp(frames, frames[voiced], hz[voiced]).astype(np.float32), voiced


def _similarity(wav: np.ndarray, sampling_rate: int, hop: int) -> np.ndarray:
    """Normalised cross-correlation of each frame at each lag: wav [S] -> [T, lags] in [-1, 1]."""
    size, longest = round(0.03 * sampling_rate), round(1.1 * sampling_rate / MIN_HZ)
    before = (size + longest - hop) // 2
    padded = np.pad(wav, (before, size + longest))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size + longest)[::hop]
    windows = windows[: len(wav) // hop]
    n_fft = 2 ** (size + longest - 1).bit_length()
    spectrum = np.fft.rfft(windows, n_fft)
    product = np.fft.irfft(spectrum * np.fft.rfft(windows[:, :size], n_fft).conj())[:, :longest]
    energy = np.cumsum(np.pad(windows**2, ((0, 0), (1, 0))), axis=1)
    energy = energy[:, size : size + longest] - energy[:, :longest]
    # The floor of about -60 dB keeps silence from looking periodic.
    floor = size * 1e-6
    return product / np.sqrt((energy[:, :1] + floor) * (energy + floor))


def _best_path(similarity: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """Viterbi search: candidates [T, L] at `octaves` [L] -> index of the best per frame [T]."""
    cost = OCTAVE_COST * np.abs(octaves[:, None] - octaves)
    # Two periods are as similar as one: ties go to the shorter lag.
    local = similarity - 0.02 * octaves
    score, back = local[0], np.zeros(local.shape, int)
    for t in range(1, len(local)):
        total = score[:, None] - cost
        back[t] = total.argmax(0)
        score = total.max(0) + local[t]
    path = np.full(len(local), score.argmax())
    for t in range(len(path) - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return path


def _peak_near(similarity: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Best lag within 3 % of each frame's lag [T], to a fraction of a sample (parabola) -> [T]."""
    rows = np.arange(len(lags))
    offsets = np.arange(-8, 9)
    near = np.clip(lags[:, None] + offsets, 1, similarity.shape[1] - 2)
    values = np.where(
        np.abs(offsets) <= 0.03 * lags[:, None] + 1, similarity[rows[:, None], near], -2
    )
    best = near[rows, values.argmax(1)]
    left, centre, right = (similarity[rows, best + i] for i in (-1, 0, 1))
    curvature = np.minimum(left - 2 * centre + right, -1e-9)
    return best + np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)


def pulse_train(
    hz: jax.Array, voiced: jax.Array, sampling_rate: int, hop: int, start: jax.Array | float = 0.0
) -> jax.Array:
    """Band-limited pulses of unit power, silent where not voiced -> [B, S].

    All harmonics below half the sampling rate are summed in phase, in closed form (Dirichlet
    kernel). The pitch changes linearly from the start of a frame to the start of the next one if
    the next one is voiced.

    Args:
      hz: pitch at the start of each frame [B, T].
      voiced: 1 where voiced, 0 elsewhere [B, T].
      sampling_rate: samples per second, in Hz.
      hop: samples per frame.
      start: phase at the start of the first frame, in periods.
    """
    step, slope = _steps(hz, voiced, sampling_rate, hop)
    phase = phases(hz, voiced, sampling_rate, hop, start)
    n = jnp.arange(hop)
    phase = phase[..., None] + step[..., None] * n + slope[..., None] * n**2 / 2
    harmonics = jnp.floor(0.5 / step)[..., None]
    angle = jnp.pi * (phase - jnp.round(phase))
    peak = jnp.abs(jnp.sin(angle)) < 1e-4
    kernel = jnp.sin((2 * harmonics + 1) * angle) / jnp.where(peak, 1.0, jnp.sin(angle))
    kernel = jnp.where(peak, 2 * harmonics + 1, kernel) - 1
    pulses = kernel / jnp.sqrt(2 * harmonics) * voiced[..., None]
    return pulses.reshape(len(hz), -1)


def phases(
    hz: jax.Array, voiced: jax.Array, sampling_rate: int, hop: int, start: jax.Array | float = 0.0
) -> jax.Array:
    """Phase of the pulse train at the start of each frame, in periods from 0 to 1 [B, T]."""
    step, slope = _steps(hz, voiced, sampling_rate, hop)
    advance = (hop * step + slope * hop**2 / 2)[:, :-1]
    advance = jnp.concatenate([jnp.full((len(hz), 1), start), advance], axis=1) % 1.0
    # Wrapped at every sum, so that it stays exact over minutes.
    return jax.lax.associative_scan(lambda a, b: (a + b) % 1.0, advance, axis=1)


def _steps(
    hz: jax.Array, voiced: jax.Array, sampling_rate: int, hop: int
) -> tuple[jax.Array, jax.Array]:
    """Periods per sample at the start of each frame, and their change per sample; both [B, T]."""
    # An untrained predictor may predict any pitch; at least two harmonics must fit.
    step = jnp.clip(hz / sampling_rate, 1e-4, 0.25)
    next_voiced = jnp.pad(voiced[:, 1:], ((0, 0), (0, 1)))
    return step, jnp.diff(step, axis=1, append=step[:, -1:]) / hop * next_voiced
