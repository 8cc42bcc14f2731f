"""The unit vocoder: discrete units -> speech.

A HiFi-GAN generator over learned embeddings of codes, with a duration predictor (Polyak et al.
2021, arXiv 2104.00355; Lee et al. 2022, arXiv 2107.05604). A code is a unit at the vocoder's
embedding.

    vocoder = UnitVocoder.from_pretrained()
    wav = vocoder([5, 9, 71], speaker="slt")        # float32 [samples], 16 kHz
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import ASSETS
from speechgpt_jax.speech import pretrained
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.pitch import pulse_train
from speechgpt_jax.speech.vocoder.config import VocoderConfig
from speechgpt_jax.speech.vocoder.hifigan import DurationPredictor, Generator, PitchPredictor

SHIPPED = ASSETS / "vocoder"


class UnitVocoder(nnx.Module):
    """Code embedding -> (duration predictor -> repeat) -> beside the speaker's -> generator.

    Shapes: B batch, N merged codes, T codes after repeating, S = T * code_hop_size samples.
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
    def from_pretrained(cls, folder: str | os.PathLike = SHIPPED) -> "UnitVocoder":
        """The vocoder of `load_vocoder`, in its form for inference."""
        return for_inference(load_vocoder(folder))

    def save_pretrained(self, folder: str | os.PathLike, dtype=np.float32) -> None:
        """Writes such a folder; each file appears whole or not at all. float16 halves it."""
        pretrained.save_model(folder, self, self.config.to_json(), dtype)

    def __call__(self, units, durations=None, speaker: int | str = 0, duration_scale: float = 1.0):
        """One sequence of units -> wav, float32 [samples]; see `synthesize`."""
        durations = None if durations is None else [durations]
        return self.synthesize([units], durations, [speaker], duration_scale)[0]

    def synthesize(
        self,
        units: Sequence[Sequence[int]],
        durations: Sequence[Sequence[int]] | None = None,
        speakers: Sequence[int | str] | None = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """Sequences of units -> their wavs, float32 [samples], each as it would be alone.

        Args:
          units: merged units; negative ones are dropped, as the reference does.
          durations: how many codes (of 20 ms) each unit lasts; None: as predicted.
          speakers: index or name of each one's voice; None: the first.
          duration_scale: 2 speaks at half the speed.

        Raises:
          UserError: no units, units or speakers that the vocoder does not have, or durations that
            don't fit.
        """
        spoken = [np.asarray(sequence).reshape(-1) >= 0 for sequence in units]
        units = [
            self.checked_units(np.asarray(u).reshape(-1)[keep]) for u, keep in zip(units, spoken)
        ]
        speakers = np.array(
            [self.speaker_index(speaker) for speaker in speakers or [0] * len(units)], np.int32
        )
        if durations is None:
            durations = self.predict_durations(units, speakers, duration_scale)
        else:
            durations = [
                np.maximum(np.rint(_checked_durations(d, keep) * duration_scale), 1).astype(int)
                for d, keep in zip(durations, spoken)
            ]
        codes, mask = _pad([np.repeat(u, d) for u, d in zip(units, durations)])
        wavs = np.asarray(_generate(self, codes, speakers, mask))
        return [wav[: d.sum() * self.config.code_hop_size] for wav, d in zip(wavs, durations)]

    def predict_durations(
        self, units: Sequence[np.ndarray], speakers: np.ndarray, duration_scale: float = 1.0
    ) -> list[np.ndarray]:
        """Merged units [N], index of each one's speaker [B] -> durations [N] in codes.

        They are max(round((exp(x) - 1) * duration_scale), 1) of the predicted x.
        """
        codes, mask = _pad(units)
        predicted = np.asarray(_predict_durations(self, codes, speakers, mask, duration_scale))
        return [row[: len(u)] for row, u in zip(predicted, units)]

    def log_durations(self, codes, speakers, mask=None, rngs: nnx.Rngs | None = None):
        """Merged codes [B, N], speakers [B] -> log(duration + 1) [B, N]."""
        # The code comes first in what is embedded; the speaker may be left out.
        x = self.embed(codes, speakers)[..., : self.config.duration_embed_dim]
        return self.duration_predictor(x, mask, rngs)

    def generate(self, codes, speakers, mask=None):
        """Codes [B, T], speakers [B] -> wav [B, S]."""
        if not self.config.pitch_hidden_dim:
            return self.generator(self.embed(codes, speakers), mask)
        hz, voiced = self.predict_pitch(codes, speakers, mask)
        return self.generator(self.embed(codes, speakers), mask, self.pulses(hz, voiced))

    def predict_pitch(self, codes, speakers, mask=None):
        """Codes [B, T], speakers [B] -> pitch in Hz [B, T], 1 where voiced and else 0 [B, T]."""
        log_hz, voiced = self.pitch_predictor(self.embed(codes, speakers), mask)
        return jnp.exp(log_hz), (voiced > 0) * (1.0 if mask is None else mask)

    def embed(self, codes, speakers):
        """Codes [B, T], speakers [B] -> [B, T, model_in_dim]."""
        x = self.code_embedding(codes)
        if not self.config.speakers:
            return x
        speaker = self.speaker_embedding(speakers)[:, None]
        return jnp.concatenate([x, jnp.broadcast_to(speaker, x.shape)], axis=-1)

    def pulses(self, hz, voiced, start=0.0):
        """Pitch [B, T] of each code and whether it is voiced, 0 or 1 -> a pulse train [B, S]."""
        config = self.config
        return pulse_train(hz, voiced, config.sampling_rate, config.code_hop_size, start)

    def checked_units(self, units: np.ndarray) -> np.ndarray:
        """[N] int32; UserError if they are none, or not the vocoder's."""
        if units.ndim != 1 or not units.size or not np.issubdtype(units.dtype, np.integer):
            raise UserError(
                f"Expected at least one unit (an integer), got {units.dtype} {units.shape}."
            )
        if units.max() >= self.config.num_embeddings:
            raise UserError(
                f"Unit {units.max()} is not among the vocoder's {self.config.num_embeddings}; "
                "units and vocoder must be of one clustering."
            )
        return units.astype(np.int32)

    def speaker_index(self, speaker: int | str) -> int:
        """The index of a voice given by name or index; UserError if the vocoder lacks it."""
        names = self.config.speakers
        if isinstance(speaker, str) and speaker in names:
            return names.index(speaker)
        if not isinstance(speaker, str) and 0 <= speaker < max(len(names), 1):
            return int(speaker)
        known = f"one of {list(names)} or its index" if names else "0: it has a single voice"
        raise UserError(f"The vocoder has no speaker {speaker!r}; expected {known}.")


def load_vocoder(folder: str | os.PathLike) -> UnitVocoder:
    """Reads a folder of `config.json` and `model.safetensors`; parameters become float32."""
    config = VocoderConfig.from_json(pretrained.load_fields(folder))
    return pretrained.load_model(folder, lambda: UnitVocoder(config, rngs=nnx.Rngs(0)))


# nnx.jit would take 25 ms a call to look at all modules of the published shape, jax.jit takes 3.
@jax.jit
def _generate(vocoder, codes, speakers, mask):
    return vocoder.generate(codes, speakers, mask)


@jax.jit
def _predict_durations(vocoder, codes, speakers, mask, duration_scale):
    durations = (jnp.exp(vocoder.log_durations(codes, speakers, mask)) - 1) * duration_scale
    return jnp.maximum(jnp.round(durations), 1).astype(jnp.int32)


def _bucket(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, ...: each new length compiles, a chat should meet few."""
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


def _checked_durations(durations, spoken: np.ndarray) -> np.ndarray:
    durations = np.asarray(durations).reshape(-1)
    if len(durations) != len(spoken) or durations.min() < 1:
        raise UserError(
            f"Expected for each of {len(spoken)} units a duration of at least 1 code (of 20 ms), "
            f"got {len(durations)}: {durations[:8].tolist()}..."
        )
    return durations[spoken]
