"""Training data and losses of the unit vocoder: random segments, spectral and predictor losses.

Shapes: B batch, T codes after repeating, N reduced units, S = T * code_hop_size samples.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soundfile
from flax import nnx

from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.limits import check_number, check_sizes
from speechgpt_jax.manifests import check_fields
from speechgpt_jax.speech import mel
from speechgpt_jax.speech.audio import check_samples
from speechgpt_jax.speech.audio_files.decoders import open_unnamed
from speechgpt_jax.speech.batches import NumberedBatches
from speechgpt_jax.speech.pitch import track_pitch
from speechgpt_jax.speech.vocoder.config import VocoderConfig, whole_durations
from speechgpt_jax.speech.vocoder.discriminators import (
    Discriminators,
    adversarial_loss,
    feature_loss,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# Samples between the windows of the mel loss.
MEL_HOP = 256
# Recordings whose durations are compared with the predicted ones.
CALIBRATION_ROWS = 500
# Seconds of a recording without units at its end: a frame of units needs 25 ms.
LONGEST_REST = 0.5
# Fields of a recording's row.
FIELDS = ("path", "units", "durations", "speaker")


@dataclasses.dataclass(frozen=True)
class VocoderObjective:
    """Weights of the losses.

    Attributes:
      stft_sizes: FFT sizes of the multi-resolution STFT loss, at least one; hops are a quarter of
        them.
      stft, duration, pitch: weights of `stft_loss`, `duration_loss` and `pitch_loss`.
      mel, adversarial, feature: weights of HiFi-GAN's losses; the last two need discriminators.
    """

    stft_sizes: tuple[int, ...] = (1024, 512, 256)
    stft: float = 45.0
    duration: float = 1.0
    pitch: float = 1.0
    mel: float = 45.0
    adversarial: float = 1.0
    feature: float = 2.0

    def __post_init__(self):
        check_sizes(stft_sizes=self.stft_sizes)
        for size in self.stft_sizes:
            check_number("stft_sizes", size, at_least=4)
            mel.check_hop(size, size // 4)
        for name in ("stft", "duration", "pitch", "mel", "adversarial", "feature"):
            check_number(name, getattr(self, name), at_least=0)


def stft_loss(wav: jax.Array, target: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Spectral convergence + L1 of log magnitudes, mean over resolutions; both wavs [B, S].

    Yamamoto et al. 2020 (Parallel WaveGAN, arXiv 1910.11480), equations 4 to 6.
    """
    total = 0.0
    for n_fft in sizes:
        fake = mel.magnitude(*mel.stft(wav, n_fft, n_fft // 4))
        real = mel.magnitude(*mel.stft(target, n_fft, n_fft // 4))
        convergence = jnp.linalg.norm(real - fake) / jnp.linalg.norm(real)
        total += convergence + jnp.abs(jnp.log(real) - jnp.log(fake)).mean()
    return total / len(sizes)


def mel_loss(wav: jax.Array, target: jax.Array, sampling_rate: int) -> jax.Array:
    """L1 of log mel spectrograms (HiFi-GAN, equation 5): 80 mels up to 8 kHz, hop MEL_HOP.

    wav, target: sound [B, S] of `sampling_rate` Hz.
    """

    def log_mel(x):
        return mel.log_mel(x, sampling_rate, n_fft=1024, hop=MEL_HOP, num_mels=80, fmax=8000.0)

    return jnp.abs(log_mel(wav) - log_mel(target)).mean()


def duration_loss(
    vocoder: UnitVocoder, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
) -> jax.Array:
    """Mean squared error of log(duration + 1); a duration of 0 marks padding.

    batch: `units`, int32, and `durations`, float32 frames, both [B, T]; `speakers`, int32 [B].
    """
    real = batch["durations"] > 0
    mask = real.astype(jnp.float32)
    predicted = vocoder.log_durations(batch["units"], batch["speakers"], mask, rngs)
    error = (predicted - jnp.log1p(batch["durations"])) ** 2
    return (error * real).sum() / real.sum()


def pitch_loss(log_hz: jax.Array, voiced: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Mean absolute error in octaves where voiced + cross-entropy of voicing.

    log_hz, voiced: predicted log of the pitch in Hz and logit of being voiced, both [B, T].
    """
    error = jnp.abs(log_hz - jnp.log(batch["hz"])) / jnp.log(2.0) * batch["voiced"]
    entropy = optax.sigmoid_binary_cross_entropy(voiced, batch["voiced"]) * batch["mask"]
    return error.sum() / jnp.maximum(batch["voiced"].sum(), 1) + entropy.sum() / batch["mask"].sum()


def synthesize_segments(
    vocoder: UnitVocoder, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Segments of a batch synthesized by the vocoder, wav [B, S], and its predictors' losses.

    The generator is trained with the pitch of the recordings.
    """
    x = vocoder.embed(batch["codes"], batch["speakers"])
    losses = {"duration": duration_loss(vocoder, batch, rngs)}
    pulses = None
    if vocoder.config.pitch_hidden_dim:
        pulses = vocoder.pulses(batch["hz"], batch["voiced"])
        log_hz, voiced = vocoder.pitch_predictor(x, batch["mask"])
        losses["pitch"] = pitch_loss(log_hz, voiced, batch)
    return vocoder.generator(x, batch["mask"], pulses), losses


def sound_losses(
    wav: jax.Array,
    target: jax.Array,
    discriminators: Discriminators | None,
    stft_sizes: Sequence[int],
    sampling_rate: int,
) -> dict[str, jax.Array]:
    """Losses of wav [B, S] against target [B, S], by name."""
    losses = {
        "stft": stft_loss(wav, target, stft_sizes),
        "mel": mel_loss(wav, target, sampling_rate),
    }
    if discriminators is not None:
        synthesized, real = discriminators(wav), discriminators(target)
        losses["adversarial"] = adversarial_loss(synthesized)
        losses["feature"] = feature_loss(real, synthesized)
    return losses


def calibrate_durations(vocoder: UnitVocoder, rows: Sequence[Mapping], factor: float) -> None:
    """Sets the bias of the duration predictor: speech lasts `factor` times as long as recordings.

    As trained, it is too short: `duration_loss` leads to the mean of logarithms, which is below the
    logarithm of the mean.

    Args:
      vocoder: is changed.
      rows: rows of `prepare_rows`; up to CALIBRATION_ROWS of them are compared.
      factor: 1.1 for speech that is 10 % slower than the recordings.
    """
    rows = rows[:: -(-len(rows) // CALIBRATION_ROWS)]
    units = [np.asarray(row["units"]) for row in rows]
    speakers = np.array([row["speaker"] for row in rows], np.int32)
    wanted = factor * sum(sum(row["durations"]) for row in rows)
    bias = vocoder.duration_predictor.proj.bias
    trained, low, high = bias[...], -1.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        bias[...] = trained + middle
        is_short = sum(map(np.sum, vocoder.predict_durations(units, speakers))) < wanted
        low, high = (middle, high) if is_short else (low, middle)


class VocoderBatches(NumberedBatches):
    """Endless batches of random segments of recordings; the files are read as needed.

    A batch has `codes`, `mask`, `hz`, `voiced` [B, T], `wav` [B, S], `speakers` [B], and `units`,
    `durations` [B, T], reduced units of the same recordings that need not be those of the segment.

    Args:
      rows: rows of `prepare_rows`.
      config: sizes of the vocoder.
      batch_size: number of segments B.
      segment_codes: length T of a segment; a shorter recording is padded and masked.
      seed: seed of the draws.
    """

    def __init__(
        self,
        rows: list[dict],
        config: VocoderConfig,
        *,
        batch_size: int,
        segment_codes: int,
        seed: int,
    ):
        super().__init__(seed)
        self._rows, self._config = rows, config
        self._batch_size, self._segment_codes = batch_size, segment_codes
        self._ends = np.cumsum([sum(row["durations"]) for row in rows])

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # The probability of a recording is proportional to its length.
        places = rng.integers(self._ends[-1], size=self._batch_size)
        rows = [self._rows[i] for i in np.searchsorted(self._ends, places, side="right")]
        segments = [self._segment(row, rng) for row in rows]
        return {name: np.stack([s[name] for s in segments]) for name in segments[0]}

    def _segment(self, row: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        hop, size = self._config.code_hop_size, self._segment_codes
        codes = np.repeat(row["units"], row["durations"])
        start = int(rng.integers(max(len(codes) - size, 0) + 1))
        codes = codes[start : start + size]
        wav = _read(row, start * hop, len(codes) * hop)
        hz, voiced = track_pitch(wav, self._config.sampling_rate, hop)
        # The duration predictor gets up to `segment_codes` reduced units from anywhere.
        first = rng.integers(max(len(row["units"]) - size, 0) + 1)
        return {
            "codes": _padded(codes, size, np.int32),
            "mask": _padded(np.ones(len(codes)), size, np.float32),
            "wav": _padded(wav, size * hop, np.float32),
            "hz": np.maximum(_padded(hz, size, np.float32), 1.0),
            "voiced": _padded(voiced, size, np.float32),
            "speakers": np.int32(row["speaker"]),
            "units": _padded(row["units"][first : first + size], size, np.int32),
            "durations": _padded(row["durations"][first : first + size], size, np.float32),
        }


def _read(row: Mapping, start: int, samples: int) -> np.ndarray:
    """The samples of a recording from `start` on, fewer at its end."""
    path = row["path"]
    try:
        wav, _ = soundfile.read(open_unnamed(row["file"]), samples, start, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(f"{path} is damaged or cut off ({reason}).") from error
    check_samples(wav, path)
    return wav


def _padded(values, size: int, dtype) -> np.ndarray:
    out = np.zeros(size, dtype)
    out[: len(values)] = values
    return out


def prepare_rows(
    rows: Sequence[Mapping], config: VocoderConfig, copies: Mapping[str, str] | None = None
) -> list[dict]:
    """Rows {path, units, durations, speaker: name} -> the same with `file` and the speaker's index.

    Rows of speakers that the vocoder doesn't have are left out. `file` is the local file of a
    recording: its copy in `copies`, or else `path`.

    Raises:
      UserError: a recording can't be read, or has another sampling rate, units that the vocoder
        doesn't have or durations that don't fit its length; or no row is left.
    """
    check_fields(rows, FIELDS)
    if config.speakers:
        rows = [row for row in rows if row["speaker"] in config.speakers]
    if not rows:
        names = ", ".join(config.speakers) or "the vocoder's one speaker"
        raise UserError(f"no row is left to train on; expected recordings of {names}.")
    names = config.speakers
    rows = [{**row, "file": (copies or {}).get(row["path"], row["path"])} for row in rows]
    return [
        {
            **row,
            "durations": _checked_durations(row, config),
            "speaker": names.index(row["speaker"]) if names else 0,
        }
        for row in rows
    ]


def _checked_durations(row: Mapping, config: VocoderConfig) -> list[int]:
    """The durations of a row, all of which is checked."""
    path, units = row["path"], row["units"]
    try:
        info = soundfile.info(open_unnamed(row["file"]))
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(
            f"{path} can't be read ({reason}); expected a wav, flac or other recording that"
            " libsndfile reads."
        ) from error
    if info.samplerate != config.sampling_rate:
        raise UserError(
            f"{path} has {info.samplerate} Hz; expected {config.sampling_rate}: resample it."
        )
    if info.channels != 1:
        raise UserError(f"{path} has {info.channels} channels; expected mono.")
    with naming(path):
        config.check_units(units)
        whole = whole_durations(row["durations"], len(units))
    missing = sum(whole) * config.code_hop_size - info.frames
    if missing >= config.code_hop_size:
        raise UserError(
            f"{path}: durations reach {missing} samples beyond its end; extract its units again."
        )
    if -missing > LONGEST_REST * config.sampling_rate:
        raise UserError(
            f"{path} lasts {-missing / config.sampling_rate:.2f} s longer than its"
            " durations; extract its units again."
        )
    return whole
