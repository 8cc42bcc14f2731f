"""Unit vocoder: discrete units -> speech.

A HiFi-GAN generator over learned embeddings of codes, with a duration predictor (Polyak et al.
2021, arXiv 2104.00355; Lee et al. 2022, arXiv 2107.05604). A code is a unit as the generator takes
it, one for every 20 ms.

    vocoder = UnitVocoder.from_pretrained()
    wav = vocoder([5, 9, 71], speaker="slt")        # float32 [samples], 16 kHz
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.shipped import SHIPPED_VOCODER
from speechgpt_jax.speech import pretrained
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.pitch import pulse_train
from speechgpt_jax.speech.vocoder.config import (
    VocoderConfig,
    as_array,
    check_durations,
    check_total,
)
from speechgpt_jax.speech.vocoder.hifigan import DurationPredictor, Generator, PitchPredictor


class UnitVocoder(nnx.Module):
    """Embeddings of codes and speaker, duration and pitch predictors, generator.

    Units are repeated for their durations and embedded; the speaker's embedding is appended to
    each, and the generator makes the samples.

    Shapes: B batch, N reduced units, T codes after repeating, S = T * code_hop_size samples.
    """

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, normal = config.embedding_dim, nnx.initializers.normal(1.0)
        self.code_embedding = nnx.Embed(
            config.num_embeddings, dim, embedding_init=normal, rngs=rngs
        )
        if config.speakers:
            self.speaker_embedding = nnx.Embed(
                len(config.speakers), dim, embedding_init=normal, rngs=rngs
            )
        self.duration_predictor = DurationPredictor(config, rngs=rngs)
        if config.pitch_hidden_dim:
            hidden = config.pitch_hidden_dim
            self.pitch_predictor = PitchPredictor(config.model_in_dim, hidden, rngs=rngs)
        self.generator = Generator(config, rngs=rngs)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike = SHIPPED_VOCODER) -> "UnitVocoder":
        """The vocoder of `load_vocoder`, in its form for inference."""
        return for_inference(load_vocoder(folder))

    def save_pretrained(self, folder: str | os.PathLike, dtype: DTypeLike = np.float32) -> None:
        """Writes `config.json` and `model.safetensors`; float16 halves the size."""
        pretrained.save_model(folder, self, self.config.to_json(), dtype)

    def __call__(
        self,
        units: Sequence[int],
        durations: Sequence[int] | None = None,
        speaker: int | str = 0,
        duration_scale: float = 1.0,
    ) -> np.ndarray:
        """Wav of one sequence of units, float32 [samples]; see `synthesize`."""
        durations = None if durations is None else [durations]
        return self.synthesize([units], durations, [speaker], duration_scale)[0]

    def synthesize(
        self,
        units: Sequence[Sequence[int]],
        durations: Sequence[Sequence[int]] | None = None,
        speakers: Sequence[int | str] | None = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """Wavs of sequences of units, float32 [samples] each, the same in any batch.

        Args:
          units: reduced units; negative ones are dropped with their durations, as fairseq does.
          durations: length of each unit in codes of 20 ms; None: predicted.
          speakers: index or name of the speaker of each sequence; None: the first speaker.
          duration_scale: 2 halves the speed.

        Raises:
          UserError: a sequence is empty, the vocoder doesn't have a unit or a speaker, or the
            durations, the speakers or the scale don't fit, or the speech is too long.
        """
        config = self.config
        check_number("duration_scale", duration_scale, at_least=0.01, at_most=100)
        for name, values in (("durations", durations), ("speakers", speakers)):
            if values is not None and len(values) != len(units):
                raise UserError(
                    f"{name} are given for {len(values)} sequences; expected {len(units)}, one for "
                    "each sequence of units."
                )
        units = [as_array(sequence).reshape(-1) for sequence in units]
        # `check_units` refuses what is no number.
        kept = [s >= 0 if s.dtype.kind in "if" else np.full(len(s), True) for s in units]
        if durations is not None:
            durations = [check_durations(d, len(u)) for d, u in zip(durations, units)]
        units = [config.check_units(sequence[keep]) for sequence, keep in zip(units, kept)]
        speakers = [0] * len(units) if speakers is None else speakers
        speakers = np.array([config.speaker_index(speaker) for speaker in speakers], np.int32)
        for sequence in units:
            check_total(len(sequence))  # A duration is at least 1.
        if durations is None:
            durations = self.predict_durations(units, speakers, duration_scale)
        else:
            durations = [
                np.maximum(np.rint(d[keep] * duration_scale), 1).astype(int)
                for d, keep in zip(durations, kept)
            ]
        for d in durations:
            check_total(d.sum(dtype=float))
        codes, mask = _pad([np.repeat(u, d) for u, d in zip(units, durations)])
        wavs = np.asarray(_generate(self, codes, speakers, mask))
        return [wav[: d.sum() * self.config.code_hop_size] for wav, d in zip(wavs, durations)]

    def predict_durations(
        self, units: Sequence[np.ndarray], speakers: np.ndarray, duration_scale: float = 1.0
    ) -> list[np.ndarray]:
        """Durations [N], in codes, of each sequence of reduced units [N]; speakers [B] by index.

        They are max(round((exp(x) - 1) * duration_scale), 1), where x is predicted.
        """
        codes, mask = _pad(units)
        predicted = np.asarray(_predict_durations(self, codes, speakers, mask, duration_scale))
        return [row[: len(u)] for row, u in zip(predicted, units)]

    def log_durations(
        self,
        codes: jax.Array,  # [B, N], reduced
        speakers: jax.Array,  # [B]
        mask: jax.Array | None = None,  # [B, N]
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Predicted log(duration + 1) [B, N]; with `rngs`, dropout is applied."""
        # The code's embedding comes first; the predictor may do without the speaker's.
        x = self.embed(codes, speakers)[..., : self.config.duration_embed_dim]
        return self.duration_predictor(x, mask, rngs)

    def generate(
        self, codes: jax.Array, speakers: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Codes [B, T], speakers [B], mask [B, T] -> wav [B, S]."""
        if not self.config.pitch_hidden_dim:
            return self.generator(self.embed(codes, speakers), mask)
        hz, voiced = self.predict_pitch(codes, speakers, mask)
        return self.generator(self.embed(codes, speakers), mask, self.pulses(hz, voiced))

    def predict_pitch(
        self, codes: jax.Array, speakers: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Codes [B, T], speakers [B] -> pitch in Hz [B, T], 1.0 where voiced else 0.0 [B, T]."""
        log_hz, voiced = self.pitch_predictor(self.embed(codes, speakers), mask)
        return jnp.exp(log_hz), (voiced > 0) * (1.0 if mask is None else mask)

    def embed(self, codes: jax.Array, speakers: jax.Array) -> jax.Array:
        """Codes [B, T], speakers [B] -> [B, T, model_in_dim]."""
        x = self.code_embedding(codes)
        if not self.config.speakers:
            return x
        speaker = self.speaker_embedding(speakers)[:, None]
        return jnp.concatenate([x, jnp.broadcast_to(speaker, x.shape)], axis=-1)

    def pulses(self, hz: jax.Array, voiced: jax.Array, start: jax.Array | float = 0.0) -> jax.Array:
        """Pitch in Hz [B, T], 1 where voiced [B, T] -> pulse train [B, S]; see `pulse_train`."""
        config = self.config
        return pulse_train(hz, voiced, config.sampling_rate, config.code_hop_size, start)


def load_config(folder: str | os.PathLike) -> VocoderConfig:
    """Configuration of the vocoder in a folder; UserError if there is none."""
    return VocoderConfig.from_json(pretrained.load_fields(folder), f"{folder}/config.json")


def load_vocoder(folder: str | os.PathLike) -> UnitVocoder:
    """Vocoder in a folder of `config.json` and `model.safetensors`, with float32 parameters.

    Raises:
      UserError: the folder holds something else.
    """
    config = load_config(folder)
    return pretrained.load_model(folder, lambda: UnitVocoder(config, rngs=nnx.Rngs(0)))


# nnx.jit takes 25 ms per call to visit all modules of the published sizes, jax.jit takes 3 ms.
@jax.jit
def _generate(
    vocoder: UnitVocoder,
    codes: jax.Array,  # BT
    speakers: jax.Array,  # B
    mask: jax.Array,  # BT
) -> jax.Array:  # BS
    return vocoder.generate(codes, speakers, mask)


@jax.jit
def _predict_durations(
    vocoder: UnitVocoder,
    codes: jax.Array,  # BN
    speakers: jax.Array,  # B
    mask: jax.Array,  # BN
    duration_scale: jax.Array | float,
) -> jax.Array:  # BN
    durations = (jnp.exp(vocoder.log_durations(codes, speakers, mask)) - 1) * duration_scale
    return jnp.maximum(jnp.round(durations), 1).astype(jnp.int32)


def _bucket(length: int) -> int:
    """Smallest of 64, 96, 128, 192, 256, ... that is at least `length`: every new one compiles."""
    power = 64
    while 2 * power <= length:
        power *= 2
    return next(size for size in (power, power * 3 // 2, power * 2) if size >= length)


def _pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[5, 9], [7] -> codes [[5, 9, 0, ...], [7, 0, 0, ...]], mask [[1, 1, 0, ...], [1, 0, ...]]."""
    lengths = np.array([len(sequence) for sequence in sequences])
    mask = np.arange(_bucket(lengths.max())) < lengths[:, None]
    codes = np.zeros(mask.shape, np.int32)
    codes[mask] = np.concatenate(sequences)
    return codes, mask.astype(np.float32)
