"""The sizes of a unit vocoder, and fairseq's config.json that they are kept in."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Names and defaults are those of fairseq's published unit HiFi-GAN.

    Attributes:
      num_embeddings, embedding_dim: codes, and width of their embedding.
      speakers: names of the voices; an embedding of each goes beside that of the code. None: one
        voice without an embedding.
      upsample_rates, upsample_kernel_sizes: of the transposed convolutions.
      upsample_initial_channel: halved by each of them.
      resblock_kernel_sizes, resblock_dilation_sizes: the residual blocks after each of them.
      duration_embed_dim: what the duration predictor is given: embedding_dim, the code alone, or
        model_in_dim, the speaker too.
      duration_hidden_dim, duration_kernel_size, duration_dropout: the duration predictor.
      sampling_rate: in Hz; that of all sound here.
      code_hop_size: samples a code.
      istft_n_fft, istft_hop_size: the inverse STFT that makes the samples; 0 and 1: none, the
        convolutions reach the sampling rate.
      pitch_hidden_dim: width of the pitch predictor; with one, the inverse STFT takes filtered
        pulses and noise (see `Generator`). 0: none.
    """

    num_embeddings: int = 1000
    embedding_dim: int = 128
    speakers: tuple[str, ...] = ()
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    duration_embed_dim: int = 128
    duration_hidden_dim: int = 128
    duration_kernel_size: int = 3
    duration_dropout: float = 0.5
    sampling_rate: int = SAMPLE_RATE
    code_hop_size: int = 320
    istft_n_fft: int = 0
    istft_hop_size: int = 1
    pitch_hidden_dim: int = 0

    def __post_init__(self):
        samples = math.prod(self.upsample_rates) * self.istft_hop_size
        if samples != self.code_hop_size:
            raise UserError(
                f"upsample_rates {self.upsample_rates} and istft_hop_size {self.istft_hop_size} "
                f"make {samples} samples of a code; expected code_hop_size {self.code_hop_size}."
            )
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise UserError(
                f"upsample_kernel_sizes {self.upsample_kernel_sizes} must have as many entries as "
                f"upsample_rates {self.upsample_rates}."
            )
        if self.sampling_rate != SAMPLE_RATE:
            raise UserError(f"sampling_rate {self.sampling_rate}; sound has {SAMPLE_RATE} Hz here.")
        if self.duration_embed_dim not in (self.embedding_dim, self.model_in_dim):
            raise UserError(
                f"duration_embed_dim {self.duration_embed_dim} must be embedding_dim "
                f"{self.embedding_dim} or, to see the speaker too, {self.model_in_dim}."
            )
        if self.pitch_hidden_dim and not self.istft_n_fft:
            raise UserError("A pitch predictor needs the inverse STFT; set istft_n_fft too.")

    @classmethod
    def unit_hifigan(cls, speakers: Sequence[str] = ()) -> "VocoderConfig":
        """The published shape: 13.5 M parameters, 1000 codes, 50 codes a second, 16 kHz."""
        return cls(speakers=tuple(speakers))

    @classmethod
    def tiny(cls) -> "VocoderConfig":
        """The shipped shape: 2.3 M parameters, 200 codes, three voices."""
        return cls(
            num_embeddings=200,
            embedding_dim=64,
            speakers=("slt", "rms", "kal16"),
            duration_embed_dim=128,
            duration_dropout=0.1,
            upsample_rates=(2, 2),
            upsample_kernel_sizes=(4, 4),
            upsample_initial_channel=336,
            resblock_kernel_sizes=(3, 5),
            resblock_dilation_sizes=((1, 3), (1, 3)),
            istft_n_fft=320,
            istft_hop_size=80,
            pitch_hidden_dim=64,
        )

    @property
    def model_in_dim(self) -> int:
        """Width of what the generator is given: code and speaker side by side."""
        return self.embedding_dim * (2 if self.speakers else 1)

    @property
    def contexts(self) -> tuple[int, ...]:
        """How many codes on either side the generator's sound of a code can depend on.

        Of the codes given, of what goes into each transposed convolution, and into the last one.
        """
        kernels = zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes)
        blocks = max(sum((k - 1) // 2 * (d + 1) for d in dilations) for k, dilations in kernels)
        rates = list(itertools.accumulate(self.upsample_rates, operator.mul))
        head = 3 + self.istft_n_fft / 2 / self.istft_hop_size
        # The last convolution's, each stage's from the last to the first, the first convolution's.
        stages = [(k // 2 + blocks) / rate for k, rate in zip(self.upsample_kernel_sizes, rates)]
        reaches = itertools.accumulate([head / rates[-1], *reversed(stages), 3.0])
        return tuple(math.ceil(reach) for reach in reaches)[::-1]

    @classmethod
    def from_json(cls, fields: dict) -> "VocoderConfig":
        """Reads fairseq's config.json; fields of its training (segment_size, ...) are left alone.

        Raises:
          UserError: a field is missing, or describes a generator that is not built here.
        """
        if str(fields.get("resblock", "1")) != "1":
            raise UserError(f'config.json has resblock {fields["resblock"]}; only "1" is built.')
        try:
            duration = fields["dur_predictor_params"]
            return cls(
                **{name: _as_tuples(fields[name]) for name in _SAME if name in fields},
                speakers=_speakers(fields),
                duration_embed_dim=duration["encoder_embed_dim"],
                duration_hidden_dim=duration["var_pred_hidden_dim"],
                duration_kernel_size=duration["var_pred_kernel_size"],
                duration_dropout=duration["var_pred_dropout"],
            )
        except KeyError as error:
            raise UserError(f"config.json has no {error}; expected a unit HiFi-GAN's.") from error

    def to_json(self) -> dict:
        """The fields of fairseq's config.json, and ours that have no counterpart there."""
        fields = {name: getattr(self, name) for name in _SAME}
        fields |= {"resblock": "1", "model_in_dim": self.model_in_dim}
        if self.speakers:
            fields |= {"multispkr": "from_input_file", "num_speakers": len(self.speakers)}
            fields["speakers"] = self.speakers
        fields["dur_predictor_params"] = {
            "encoder_embed_dim": self.duration_embed_dim,
            "var_pred_hidden_dim": self.duration_hidden_dim,
            "var_pred_kernel_size": self.duration_kernel_size,
            "var_pred_dropout": self.duration_dropout,
        }
        return fields


# Fields that have the same name in config.json.
_SAME = tuple(
    field.name
    for field in dataclasses.fields(VocoderConfig)
    if field.name != "speakers" and not field.name.startswith("duration_")
)


def _speakers(fields: dict) -> tuple[str, ...]:
    """fairseq numbers its speakers; their names are then "0", "1", ..."""
    if not fields.get("multispkr"):
        return ()
    numbered = [str(i) for i in range(fields.get("num_speakers", 200))]
    return tuple(fields.get("speakers", numbered))


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
