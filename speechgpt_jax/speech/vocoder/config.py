"""Sizes of a unit vocoder, read from and written to fairseq's config.json."""

import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speechgpt_jax.annotations import annotations
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields, as_tuples
from speechgpt_jax.limits import LARGEST_INT, check_lengths, check_number, check_sizes
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.mel import check_hop

# Most codes of 20 ms that are synthesized at once: half an hour.
MAX_CODES = 90_000
# A name for each of a billion speakers would fill the memory.
_MOST_SPEAKERS = 1_000_000


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Names and defaults are those of fairseq's published unit HiFi-GAN.

    Attributes:
      num_embeddings: number of codes.
      embedding_dim: width of a code's embedding, and of a speaker's.
      speakers: names of the speakers, each of whom has an embedding. Empty: a single speaker
        without an embedding.
      upsample_rates, upsample_kernel_sizes: rate and kernel size of each transposed convolution.
      upsample_initial_channel: channels before the first transposed convolution; each halves them.
      resblock_kernel_sizes, resblock_dilation_sizes: kernel size and dilations of the residual
        blocks that follow each transposed convolution.
      duration_embed_dim: input width of the duration predictor: embedding_dim for the code, or
        model_in_dim for code and speaker.
      duration_hidden_dim, duration_kernel_size, duration_dropout: sizes and dropout rate of the
        duration predictor.
      sampling_rate: samples per second, in Hz; only 16 kHz is supported.
      code_hop_size: samples per code.
      istft_n_fft, istft_hop_size: FFT size and hop, in samples, of the inverse STFT that makes the
        samples. 0 and 1: no inverse STFT, the convolutions reach the sampling rate.
      pitch_hidden_dim: width of the pitch predictor; with one, the inverse STFT takes filtered
        pulses and noise (see `Generator`). 0: no pitch predictor.
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
        for name in (
            "num_embeddings",
            "embedding_dim",
            "duration_hidden_dim",
            "duration_kernel_size",
            "istft_hop_size",
        ):
            check_number(name, getattr(self, name), at_least=1)
        for name in ("istft_n_fft", "pitch_hidden_dim"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("duration_dropout", self.duration_dropout, at_least=0, below=1)
        check_sizes(
            upsample_rates=self.upsample_rates, upsample_kernel_sizes=self.upsample_kernel_sizes
        )
        check_sizes(resblock_kernel_sizes=self.resblock_kernel_sizes)
        check_lengths(
            resblock_kernel_sizes=self.resblock_kernel_sizes,
            resblock_dilation_sizes=self.resblock_dilation_sizes,
        )
        for dilations in self.resblock_dilation_sizes:
            check_sizes(resblock_dilation_sizes=dilations)
        # Every transposed convolution halves the channels.
        fewest = 2 ** len(self.upsample_rates)
        check_number("upsample_initial_channel", self.upsample_initial_channel, at_least=fewest)
        samples = math.prod(self.upsample_rates) * self.istft_hop_size
        if samples != self.code_hop_size:
            raise UserError(
                f"upsample_rates {self.upsample_rates} and istft_hop_size {self.istft_hop_size} "
                f"make {samples} samples per code; expected code_hop_size {self.code_hop_size}."
            )
        if self.sampling_rate != SAMPLE_RATE:
            raise UserError(
                f"sampling_rate {self.sampling_rate} is not supported; expected {SAMPLE_RATE}."
            )
        if self.duration_embed_dim not in (self.embedding_dim, self.model_in_dim):
            raise UserError(
                f"duration_embed_dim {self.duration_embed_dim} must be embedding_dim "
                f"{self.embedding_dim} or, to depend on the speaker too, {self.model_in_dim}."
            )
        if self.istft_n_fft:
            check_hop(self.istft_n_fft, self.istft_hop_size)
        elif self.istft_hop_size != 1:
            raise UserError(
                f"istft_hop_size {self.istft_hop_size} is that of an inverse STFT; set istft_n_fft"
                " too, or istft_hop_size to 1."
            )
        elif self.pitch_hidden_dim:
            raise UserError("A pitch predictor needs the inverse STFT; set istft_n_fft too.")

    @classmethod
    def unit_hifigan(cls, speakers: Sequence[str] = ()) -> "VocoderConfig":
        """Published sizes: 13.5 M parameters, 1000 codes, 50 codes per second, 16 kHz."""
        return cls(speakers=tuple(speakers))

    @classmethod
    def tiny(cls) -> "VocoderConfig":
        """Sizes of the shipped vocoder: 2.3 M parameters, 200 codes, four speakers."""
        return cls(
            num_embeddings=200,
            embedding_dim=64,
            speakers=("slt", "rms", "kal16", "jm_kumo"),
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
        """Width of the generator's input: embeddings of code and speaker, concatenated."""
        return self.embedding_dim * (2 if self.speakers else 1)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Codes on either side that the generator's samples of a code depend on.

        One number for the input of the generator, one for the input of each transposed convolution,
        and one for the input of the last convolution.
        """
        kernels = zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes)
        blocks = max(sum((k - 1) // 2 * (d + 1) for d in dilations) for k, dilations in kernels)
        rates = list(itertools.accumulate(self.upsample_rates, operator.mul))
        head = 3 + self.istft_n_fft / 2 / self.istft_hop_size
        # From the last convolution through each stage back to the first convolution.
        stages = [(k // 2 + blocks) / rate for k, rate in zip(self.upsample_kernel_sizes, rates)]
        reaches = itertools.accumulate([head / rates[-1], *reversed(stages), 3.0])
        return tuple(math.ceil(reach) for reach in reaches)[::-1]

    def check_units(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Units as int32 [N].

        Raises:
          UserError: there are none, they aren't whole numbers, or the vocoder doesn't have them.
        """
        values = as_array(units)
        if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
            raise UserError(f"expected at least one unit, a whole number, got {_abridged(units)}.")
        wrong = values[(values < 0) | (values >= self.num_embeddings)]
        if wrong.size:
            raise UserError(
                f"unit {wrong[0]} is not among the vocoder's {self.num_embeddings}; "
                "use the vocoder that was trained on these units."
            )
        return values.astype(np.int32)

    def speaker_index(self, speaker: int | str) -> int:
        """Index of a speaker given by name or index; UserError if the vocoder lacks it.

        The index may be text, as on a command line.
        """
        if isinstance(speaker, str) and speaker in self.speakers:
            return self.speakers.index(speaker)
        if isinstance(speaker, str) and re.fullmatch(r"\d{1,9}", speaker, re.ASCII):
            speaker = int(speaker)
        if (
            isinstance(speaker, int | np.integer)
            and not isinstance(speaker, bool)
            and 0 <= speaker < max(len(self.speakers), 1)
        ):
            return int(speaker)
        known = (
            f"one of {', '.join(self.speakers)} or an index" if self.speakers else "0, the only one"
        )
        raise UserError(f"the vocoder has no speaker {speaker!r}; expected {known}.")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str = "config.json") -> "VocoderConfig":
        """Config from the fields of fairseq's config.json; fields of its training are ignored.

        Args:
          fields: fields of the file.
          source: its path, for messages.

        Raises:
          UserError: a field is missing or has a wrong type, or the generator is of another kind.
        """
        if str(fields.get("resblock", "1")) != "1":
            raise UserError(f'{source} has resblock {fields["resblock"]}; only "1" is supported.')
        read = Fields(fields, source)
        duration = read.inner("dur_predictor_params")
        kinds, limits = annotations(cls), {"at_most": LARGEST_INT}
        with naming(source):
            return cls(
                **{n: as_tuples(read.require(n, kinds[n], **limits)) for n in _SAME if n in fields},
                speakers=_speakers(read),
                duration_embed_dim=duration.require("encoder_embed_dim", int, **limits),
                duration_hidden_dim=duration.require("var_pred_hidden_dim", int, **limits),
                duration_kernel_size=duration.require("var_pred_kernel_size", int, **limits),
                duration_dropout=duration.require("var_pred_dropout", float),
            )

    def to_json(self) -> dict[str, Any]:
        """Fields of fairseq's config.json, and ours that have no counterpart there."""
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


def _speakers(fields: Fields) -> tuple[str, ...]:
    """Names of the speakers; fairseq has none, so its speakers are called "0", "1", ..."""
    if not fields.get("multispkr", Any):
        return ()
    number = fields.get("num_speakers", int, 200, at_least=0, at_most=_MOST_SPEAKERS)
    return tuple(fields.get("speakers", list[str], [str(i) for i in range(number)]))


def whole_durations(durations: Sequence[float], num_units: int) -> list[int]:
    """Durations, in codes, of the units of a recording; 2.0 becomes 2.

    Raises:
      UserError: they are not `num_units` whole numbers of at least 1, or too long together.
    """
    values = check_durations(durations, num_units)
    fractions = values[values != values.astype(int)]
    if fractions.size:
        raise UserError(
            f"duration {fractions[0]} is no whole number of codes; extract its units again."
        )
    return values.astype(int).tolist()


def check_durations(durations: Sequence[float] | np.ndarray, num_units: int) -> np.ndarray:
    """Durations, in codes, as an array [num_units].

    Raises:
      UserError: they are not `num_units` finite numbers of at least 1, or too long together.
    """
    values = as_array(durations)
    if (
        values.shape != (num_units,)
        or values.dtype.kind not in "iuf"
        or not (np.isfinite(values) & (values >= 1)).all()
    ):
        raise UserError(
            f"expected for each of {num_units} units a duration of at least 1 code (of 20 ms), "
            f"got {_abridged(durations)}."
        )
    check_total(values.sum(dtype=float))
    return values


def check_total(codes: float) -> None:
    """Raises a UserError if the durations of a sequence are too many codes together."""
    if codes > MAX_CODES:
        raise UserError(
            f"the durations are {codes:g} codes together, at most {MAX_CODES} are synthesized at"
            " once; cut the units into sentences."
        )


def as_array(values: Sequence | np.ndarray) -> np.ndarray:
    """An array, which has no dimension if the values are lists of different lengths."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.asarray(None)


def _abridged(values) -> str:
    """[1, 2, ..., 300] -> "300 values: [1, 2, 3, 4, 5, 6, 7, 8]..."."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, list) or len(values) <= 8:
        return repr(values)
    return f"{len(values)} values: {values[:8]!r}..."
