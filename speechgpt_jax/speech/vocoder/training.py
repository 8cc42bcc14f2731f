"""How the unit vocoder learns: batches of random segments, spectral losses, the training step.

Shapes: B batch, T codes after repeating, N merged units, S = T * code_hop_size samples.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soundfile
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import mel
from speechgpt_jax.speech.batches import NumberedBatches
from speechgpt_jax.speech.pitch import track_pitch
from speechgpt_jax.speech.vocoder.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig


@dataclasses.dataclass(frozen=True)
class VocoderObjective:
    """Weights of the losses; the last three are HiFi-GAN's.

    Attributes:
      stft_sizes: FFT sizes of the multi-resolution STFT loss; each hops by a quarter.
    """

    stft_sizes: tuple[int, ...] = (1024, 512, 256)
    stft: float = 45.0
    duration: float = 1.0
    pitch: float = 1.0
    mel: float = 45.0
    adversarial: float = 1.0
    feature: float = 2.0


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
    """L1 of log mel spectrograms (HiFi-GAN, equation 5): 80 mels up to 8 kHz, hop 256."""

    def log_mel(x):
        return mel.log_mel(x, sampling_rate, n_fft=1024, hop=256, num_mels=80, fmax=8000.0)

    return jnp.abs(log_mel(wav) - log_mel(target)).mean()


def duration_loss(vocoder: UnitVocoder, batch, rngs: nnx.Rngs) -> jax.Array:
    """Squared error of log(duration + 1); a duration of 0 marks padding."""
    real = batch["durations"] > 0
    mask = real.astype(jnp.float32)
    predicted = vocoder.log_durations(batch["units"], batch["speakers"], mask, rngs)
    error = (predicted - jnp.log1p(batch["durations"])) ** 2
    return (error * real).sum() / real.sum()


def pitch_loss(log_hz: jax.Array, voiced: jax.Array, batch) -> jax.Array:
    """Absolute error in octaves where voiced + cross-entropy of voicing; all [B, T]."""
    error = jnp.abs(log_hz - jnp.log(batch["hz"])) / jnp.log(2.0) * batch["voiced"]
    entropy = optax.sigmoid_binary_cross_entropy(voiced, batch["voiced"]) * batch["mask"]
    return error.sum() / jnp.maximum(batch["voiced"].sum(), 1) + entropy.sum() / batch["mask"].sum()


def speak(vocoder: UnitVocoder, batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The batch's segments as the vocoder says them, wav [B, S], and the losses of its predictors.

    The generator learns with the recording's own pitch.
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
    """How far wav [B, S] is from target [B, S], by name."""
    losses = {
        "stft": stft_loss(wav, target, stft_sizes),
        "mel": mel_loss(wav, target, sampling_rate),
    }
    if discriminators is not None:
        made, real = discriminators(wav), discriminators(target)
        losses["adversarial"] = adversarial_loss(made)
        losses["feature"] = feature_loss(real, made)
    return losses


class VocoderBatches(NumberedBatches):
    """Endless batches of random segments of a manifest's recordings.

    Args:
      rows: see `prepare_rows`; sound is read from the files as it is needed.
      segment_codes: length T of a segment; a shorter recording is padded and masked.
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
        # A recording is drawn in proportion to its length.
        places = rng.integers(self._ends[-1], size=self._batch_size)
        rows = [self._rows[i] for i in np.searchsorted(self._ends, places, side="right")]
        segments = [self._segment(row, rng) for row in rows]
        return {name: np.stack([s[name] for s in segments]) for name in segments[0]}

    def _segment(self, row: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        hop, size = self._config.code_hop_size, self._segment_codes
        codes = np.repeat(row["units"], row["durations"])
        start = rng.integers(max(len(codes) - size, 0) + 1)
        codes = codes[start : start + size]
        wav, _ = soundfile.read(row["path"], len(codes) * hop, start * hop, dtype="float32")
        hz, voiced = track_pitch(wav, self._config.sampling_rate, hop)
        # At most `segment_codes` merged units from anywhere teach the duration predictor.
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


def _padded(values, size: int, dtype) -> np.ndarray:
    out = np.zeros(size, dtype)
    out[: len(values)] = values
    return out


def prepare_rows(rows: Sequence[dict], config: VocoderConfig) -> list[dict]:
    """Checks a manifest's rows: {path, units, durations, speaker: name} -> with its index.

    Rows of speakers the vocoder has no voice for are left out.

    Raises:
      UserError: naming the recording, for another sampling rate, units the vocoder does not have
        or durations that don't fit; or if no row is left.
    """
    if config.speakers:
        rows = [row for row in rows if row["speaker"] in config.speakers]
    if not rows:
        raise UserError(f"no recordings of the vocoder's speakers {config.speakers}.")
    for row in rows:
        _check_row(row["path"], row["units"], row["durations"], config)
    names = config.speakers
    return [row | {"speaker": names.index(row["speaker"]) if names else 0} for row in rows]


def _check_row(path: str, units: list[int], durations: list[int], config: VocoderConfig) -> None:
    info = soundfile.info(path)
    if info.samplerate != config.sampling_rate:
        raise UserError(f"{path} has {info.samplerate} Hz; expected {config.sampling_rate}.")
    if not units or not 0 <= min(units) <= max(units) < config.num_embeddings:
        raise UserError(f"{path}: expected units 0..{config.num_embeddings - 1}, got {units}.")
    if len(durations) != len(units) or min(durations) < 1:
        raise UserError(f"{path}: {len(units)} units need as many durations >= 1: {durations}.")
    missing = sum(durations) * config.code_hop_size - info.frames
    if missing >= config.code_hop_size:
        raise UserError(f"{path}: its durations reach {missing} samples beyond its end.")


def init_state(
    vocoder: UnitVocoder,
    discriminators: Discriminators | None,
    optimizer: optax.GradientTransformation,
) -> dict:
    """The training state, a pytree: step, and parameters and optimizer state of each side."""
    state = {"step": jnp.zeros((), jnp.int32)}
    for name, model in (("vocoder", vocoder), ("discriminators", discriminators)):
        if model is not None:
            params = nnx.state(model, nnx.Param)
            state[name] = {"params": params, "opt_state": optimizer.init(params)}
    return state


def make_train_step(
    vocoder: UnitVocoder,
    discriminators: Discriminators | None,
    optimizer: optax.GradientTransformation,
    objective: VocoderObjective,
    seed: int,
):
    """train_step(state, batch) -> (state, metrics), to be jitted.

    With discriminators, they take their step first (HiFi-GAN's order); without, the spectral losses
    alone teach the vocoder: a warm start.
    """
    config = vocoder.config
    graph, _ = nnx.split(vocoder, nnx.Param)
    judges = None if discriminators is None else nnx.split(discriminators, nnx.Param)[0]

    def update(side, gradients):
        updates, opt_state = optimizer.update(gradients, side["opt_state"], side["params"])
        return {"params": optax.apply_updates(side["params"], updates), "opt_state": opt_state}

    def discriminate(params, wav, target):
        model = nnx.merge(judges, params)
        return discriminator_loss(model(target), model(wav))

    def weigh(losses):
        return sum(getattr(objective, name) * loss for name, loss in losses.items())

    def train_step(state, batch):
        new, metrics = {"step": state["step"] + 1}, {}
        key = jax.random.fold_in(jax.random.key(seed), state["step"])

        def say(params):
            wav, losses = speak(nnx.merge(graph, params), batch, nnx.Rngs(dropout=key))
            return (wav, weigh(losses)), losses

        (wav, _), backward, losses = jax.vjp(say, state["vocoder"]["params"], has_aux=True)
        model = None
        if judges is not None:
            side = state["discriminators"]
            loss, gradients = jax.value_and_grad(discriminate)(side["params"], wav, batch["wav"])
            new["discriminators"] = update(side, gradients)
            metrics["discriminator_loss"] = loss
            model = nnx.merge(judges, new["discriminators"]["params"])

        def listen(wav):
            sizes, rate = objective.stft_sizes, config.sampling_rate
            heard = sound_losses(wav, batch["wav"], model, sizes, rate)
            return weigh(heard), heard

        wav_gradient, heard = jax.grad(listen, has_aux=True)(wav)
        (gradients,) = backward((wav_gradient, jnp.ones(())))
        new["vocoder"] = update(state["vocoder"], gradients)
        losses |= heard
        metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
        seconds = batch["mask"].sum() * config.code_hop_size / config.sampling_rate
        return new, metrics | {"loss": weigh(losses), "seconds": seconds}

    return train_step
