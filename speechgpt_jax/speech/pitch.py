"""The fundamental frequency of speech, and a pulse train that follows one.

Shapes: B batch, T frames, S = T * hop samples.
"""

import jax
import jax.numpy as jnp
import numpy as np

MIN_HZ, MAX_HZ = 60.0, 400.0
# Similarity of a frame to itself one period later, above which it counts as voiced.
VOICING = 0.5
# How much similarity a change of pitch by one octave between frames has to be worth.
OCTAVE_COST = 2.0


def track_pitch(wav: np.ndarray, sampling_rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """The pitch of each frame of clean speech: wav [S] -> hz [T], voiced [T] (bool).

    Normalised cross-correlation of 30 ms around the frame's centre with itself one lag later, and
    the path through the lags that is best over the whole sound (Talkin 1995, RAPT). Between voiced
    frames `hz` is interpolated.
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
    """Cross-correlation of each frame with itself every lag later: [T, lags] in [-1, 1]."""
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
    # The floor, some -60 dB, keeps silence from looking periodic.
    floor = size * 1e-6
    return product / np.sqrt((energy[:, :1] + floor) * (energy + floor))


def _best_path(similarity: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """Viterbi over candidates [T, L] at `octaves` [L]: the index of the best one in each frame."""
    cost = OCTAVE_COST * np.abs(octaves[:, None] - octaves)
    # Two periods are as similar as one: the shorter lag wins the tie.
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
    """The best lag within 3 % of each frame's, to a fraction of a sample (by a parabola)."""
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
    """Band-limited pulses of unit power, silence where not voiced: two of [B, T] -> [B, S].

    All harmonics below half the sampling rate, in phase, in closed form (Dirichlet's kernel); the
    pitch moves on a straight line from one frame's start to the next one's, if that is voiced.
    `start` is the phase of the first frame's start, see `phases`.
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
    """The phase at each frame's start, in periods from 0 to 1: hz, voiced [B, T] -> [B, T]."""
    step, slope = _steps(hz, voiced, sampling_rate, hop)
    advance = (hop * step + slope * hop**2 / 2)[:, :-1]
    advance = jnp.concatenate([jnp.full((len(hz), 1), start), advance], axis=1) % 1.0
    # Wrapped at every sum: minutes later it is as exact as at the start.
    return jax.lax.associative_scan(lambda a, b: (a + b) % 1.0, advance, axis=1)


def _steps(hz, voiced, sampling_rate, hop):
    """Periods a sample at each frame's start, and their change a sample; both [B, T]."""
    # An untrained predictor may ask for any pitch; at least two harmonics must fit.
    step = jnp.clip(hz / sampling_rate, 1e-4, 0.25)
    next_voiced = jnp.pad(voiced[:, 1:], ((0, 0), (0, 1)))
    return step, jnp.diff(step, axis=1, append=step[:, -1:]) / hop * next_voiced
