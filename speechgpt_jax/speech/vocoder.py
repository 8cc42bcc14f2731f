"""The unit vocoder: discrete units -> speech.

A HiFi-GAN generator (Kong et al. 2020, arXiv 2010.05646) over learned code embeddings with a duration predictor
(Polyak et al. 2021, arXiv 2104.00355; Lee et al. 2022, arXiv 2107.05604). By config its last upsampling is an inverse
STFT (iSTFTNet: Kaneko et al. 2022, arXiv 2203.02395). A code is a unit at the vocoder's embedding.

    vocoder = UnitVocoder.from_pretrained("speechgpt_jax/assets/vocoder_tiny")
    wav = vocoder([5, 9, 71], speaker="slt")        # float32 [samples], 16 kHz
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import numpy as safetensors

from speechgpt_jax.speech import mel


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a `UnitVocoder`; names and defaults are those of fairseq's published unit HiFi-GAN."""

    num_embeddings: int = 1000
    embedding_dim: int = 128
    # An embedding per name is concatenated after that of the code; with no names there is one voice.
    speakers: tuple[str, ...] = ()
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    duration_hidden_dim: int = 128
    duration_kernel_size: int = 3
    duration_dropout: float = 0.5
    sampling_rate: int = 16000
    code_hop_size: int = 320
    # Size of the inverse STFT that makes the samples; 0: the generator itself reaches the sampling rate.
    istft_n_fft: int = 0
    istft_hop_size: int = 1

    def __post_init__(self):
        samples = math.prod(self.upsample_rates) * self.istft_hop_size
        if samples != self.code_hop_size:
            raise ValueError(
                f"upsample_rates {self.upsample_rates} and istft_hop_size {self.istft_hop_size} make {samples} samples "
                f"of a code, but code_hop_size is {self.code_hop_size}; their product must be equal to it."
            )
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError(
                f"{self.upsample_kernel_sizes=} must have one entry for each of {self.upsample_rates=}."
            )

    @classmethod
    def unit_hifigan(cls, speakers: Sequence[str] = ()) -> "VocoderConfig":
        """The published shape: 13.5 M parameters, 1000 codes, 50 codes a second, 16 kHz."""
        return cls(speakers=tuple(speakers))

    @classmethod
    def tiny(cls) -> "VocoderConfig":
        """The shipped shape: 200 codes, three voices."""
        return cls(
            num_embeddings=200,
            speakers=("slt", "rms", "kal16"),
            upsample_rates=(5, 4),
            upsample_kernel_sizes=(11, 8),
            upsample_initial_channel=256,
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
            istft_n_fft=64,
            istft_hop_size=16,
        )

    @property
    def context_codes(self) -> int:
        """How many codes (after repeating) on either side a sample can depend on: the generator's receptive field."""
        kernels = zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes)
        block = max(sum((k - 1) // 2 * (d + 1) for d in dilations) for k, dilations in kernels)
        radius, rate = 3.0, 1
        for upsample_rate, kernel_size in zip(self.upsample_rates, self.upsample_kernel_sizes):
            rate *= upsample_rate
            radius += (kernel_size // 2 + block) / rate
        head = 3 + self.istft_n_fft / 2 / self.istft_hop_size
        return math.ceil(radius + head / rate) + 1

    @classmethod
    def from_json(cls, fields: dict) -> "VocoderConfig":
        """Reads fairseq's config.json; its training fields (segment_size, num_mels, ...) are not the vocoder's."""
        known = {f.name for f in dataclasses.fields(cls)} - {"speakers"}
        values = {name: _as_tuples(value) for name, value in fields.items() if name in known}
        duration = fields["dur_predictor_params"]
        if str(fields.get("resblock", "1")) != "1":
            raise ValueError(
                f'config.json has "resblock": {fields["resblock"]}; only "1" is built here.'
            )
        speakers = ()
        if fields.get("multispkr"):
            numbered = (str(i) for i in range(fields.get("num_speakers", 200)))
            speakers = tuple(fields.get("speakers", numbered))
        return cls(
            **values,
            speakers=speakers,
            duration_hidden_dim=duration["var_pred_hidden_dim"],
            duration_kernel_size=duration["var_pred_kernel_size"],
            duration_dropout=duration["var_pred_dropout"],
        )

    def to_json(self) -> dict:
        """The fields of fairseq's config.json; `speakers` and `istft_*` are additions."""
        fields = dataclasses.asdict(self)
        duration = {
            "encoder_embed_dim": self.embedding_dim,
            "var_pred_hidden_dim": fields.pop("duration_hidden_dim"),
            "var_pred_kernel_size": fields.pop("duration_kernel_size"),
            "var_pred_dropout": fields.pop("duration_dropout"),
        }
        extra = {"resblock": "1", "model_in_dim": self.embedding_dim * (2 if self.speakers else 1)}
        if self.speakers:
            extra |= {"multispkr": "from_input_file", "num_speakers": len(self.speakers)}
        return fields | extra | {"dur_predictor_params": duration}


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _masked(x, mask):
    """Zeroes x [B, T, C] outside `mask` [B, T]: past its end a short item sees the padding it would see alone."""
    return x if mask is None else x * mask[..., None]


class Conv(nnx.Module):
    """A 1-D convolution [B, T, in] -> [B, T * rate, out]; `rate` > 1 is HiFi-GAN's transposed convolution.

    The transposed one is a convolution of the input with `rate - 1` zeros between its steps (several times faster on a CPU
    than the library's transposed convolution); its kernel is PyTorch's read backwards.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, *, rate=1, dilation=1, rngs: nnx.Rngs
    ):
        if (kernel_size - rate) % 2:
            raise ValueError(
                f"Kernel size {kernel_size} and rate {rate} must both be odd or both be even."
            )
        # A transposed convolution sums only kernel_size / rate taps for each of its outputs.
        scale = math.sqrt(rate / (in_channels * kernel_size))
        shape = (kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.rate, self.dilation = rate, dilation

    def __call__(self, x):
        kernel_size, rate = self.kernel.shape[0], self.rate
        pad = (
            kernel_size - 1 - (kernel_size - rate) // 2
            if rate > 1
            else (kernel_size - 1) // 2 * self.dilation
        )
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(1,),
            padding=[(pad, pad)],
            lhs_dilation=(rate,),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...]


class ResidualBlock(nnx.Module):
    """HiFi-GAN's block 1: for each dilation, a dilated and a plain convolution around a residual connection."""

    def __init__(self, channels, kernel_size, dilations, *, rngs: nnx.Rngs):
        self.convs1 = nnx.List(
            [Conv(channels, channels, kernel_size, dilation=d, rngs=rngs) for d in dilations]
        )
        self.convs2 = nnx.List(
            [Conv(channels, channels, kernel_size, rngs=rngs) for _ in dilations]
        )

    def __call__(self, x, mask=None):
        for dilated, plain in zip(self.convs1, self.convs2):
            y = dilated(_masked(jax.nn.leaky_relu(x, 0.1), mask))
            x = x + plain(_masked(jax.nn.leaky_relu(y, 0.1), mask))
        return x


class DurationPredictor(nnx.Module):
    """Code embeddings -> log(duration in codes + 1), one number a code."""

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        hidden, kernel_size = config.duration_hidden_dim, config.duration_kernel_size
        self.conv1 = Conv(config.embedding_dim, hidden, kernel_size, rngs=rngs)
        self.ln1 = nnx.LayerNorm(hidden, epsilon=1e-5, rngs=rngs)
        self.conv2 = Conv(hidden, hidden, kernel_size, rngs=rngs)
        self.ln2 = nnx.LayerNorm(hidden, epsilon=1e-5, rngs=rngs)
        self.proj = nnx.Linear(hidden, 1, rngs=rngs)
        self.dropout = nnx.Dropout(config.duration_dropout)

    def __call__(self, x, mask=None, rngs: nnx.Rngs | None = None):
        """x [B, N, C], mask [B, N] -> [B, N]. Dropout only where `rngs` are given."""
        for conv, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = norm(jax.nn.relu(conv(_masked(x, mask))))
            x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.proj(x)[..., 0]


class Generator(nnx.Module):
    """HiFi-GAN: upsampling convolutions, each followed by the mean of residual blocks of several kernel sizes."""

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        channels = config.upsample_initial_channel
        in_channels = config.embedding_dim * (2 if config.speakers else 1)
        self.conv_pre = Conv(in_channels, channels, 7, rngs=rngs)
        ups, resblocks = [], []
        for rate, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes):
            ups.append(Conv(channels, channels // 2, kernel_size, rate=rate, rngs=rngs))
            channels //= 2
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes
            ):
                resblocks.append(ResidualBlock(channels, size, dilations, rngs=rngs))
        self.ups, self.resblocks = nnx.List(ups), nnx.List(resblocks)
        self.conv_post = Conv(
            channels, config.istft_n_fft + 2 if config.istft_n_fft else 1, 7, rngs=rngs
        )
        self.istft_n_fft, self.istft_hop_size = config.istft_n_fft, config.istft_hop_size

    def __call__(self, x, mask=None):
        """x [B, T, C] at the code rate, mask [B, T] -> wav [B, T * code_hop_size]."""
        x = self.conv_pre(_masked(x, mask))
        blocks_per_stage = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(_masked(jax.nn.leaky_relu(x, 0.1), mask))
            mask = None if mask is None else jnp.repeat(mask, up.rate, axis=1)
            blocks = self.resblocks[i * blocks_per_stage : (i + 1) * blocks_per_stage]
            x = sum(block(x, mask) for block in blocks) / blocks_per_stage
        x = _masked(jax.nn.leaky_relu(x, 0.01), mask)
        return (
            self._inverse_stft(x, mask) if self.istft_n_fft else jnp.tanh(self.conv_post(x))[..., 0]
        )

    def _inverse_stft(self, x, mask):
        """One frame more than steps (the first reflected) makes steps * hop samples.

        The phase is the angle itself, as in Vocos (Siuzdak 2023, arXiv 2306.00814), not iSTFTNet's sine of it.
        """
        x = self.conv_post(jnp.concatenate([x[:, 1:2], x], axis=1))
        log_magnitude, phase = jnp.split(x, 2, axis=-1)
        size = jnp.exp(jnp.minimum(log_magnitude, 5.0))
        frame_mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
        n_fft, hop = self.istft_n_fft, self.istft_hop_size
        return mel.istft(size * jnp.cos(phase), size * jnp.sin(phase), n_fft, hop, frame_mask)


class UnitVocoder(nnx.Module):
    """Code embedding -> (duration predictor -> repeat) -> with the speaker's embedding -> generator."""

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.embedding_dim
        self.code_embedding = nnx.Embed(
            config.num_embeddings, dim, embedding_init=_normal, rngs=rngs
        )
        if config.speakers:
            self.speaker_embedding = nnx.Embed(
                len(config.speakers), dim, embedding_init=_normal, rngs=rngs
            )
        self.duration_predictor = DurationPredictor(config, rngs=rngs)
        self.generator = Generator(config, rngs=rngs)

    def log_durations(self, codes, mask=None, rngs: nnx.Rngs | None = None):
        """Merged codes [B, N] -> log(duration + 1) [B, N]."""
        return self.duration_predictor(self.code_embedding(codes), mask, rngs)

    def generate(self, codes, speakers, mask=None):
        """Repeated codes [B, T] (one each code_hop_size samples), speakers [B] -> wav [B, T * code_hop_size]."""
        x = self.code_embedding(codes)
        if self.config.speakers:
            speaker = self.speaker_embedding(speakers)[:, None]
            x = jnp.concatenate([x, jnp.broadcast_to(speaker, x.shape)], axis=-1)
        return self.generator(x, mask)

    def predict_durations(
        self, units: Sequence[Sequence[int]], duration_scale: float = 1.0
    ) -> list[np.ndarray]:
        """max(round(exp(x) - 1), 1) codes for each of the merged units; `duration_scale` 2 speaks at half the speed."""
        units = [self._check_units(u) for u in units]
        codes, mask = _pad(units)
        predicted = np.asarray(_frames(self, codes, mask, duration_scale))
        return [row[: len(u)] for row, u in zip(predicted, units)]

    def synthesize(
        self,
        units: Sequence[Sequence[int]],
        durations: Sequence[Sequence[int]] | None = None,
        speakers: Sequence[int | str] | None = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """A batch of unit sequences -> a list of wavs, float32 [samples], each as it would be alone.

        Args:
          units: merged units of each item; negative ones are dropped, as the reference does.
          durations: how often each unit repeats, in codes of 20 ms; predicted if not given.
          speakers: index or name of each item's voice; the first one if not given.
          duration_scale: multiplies durations; 2 speaks at half the speed.
        Raises:
          ValueError: for empty units, units or speakers outside the vocoder's, or durations that don't match.
        """
        spoken = [np.asarray(u).reshape(-1) >= 0 for u in units]
        units = [
            self._check_units(np.asarray(u).reshape(-1)[keep]) for u, keep in zip(units, spoken)
        ]
        if durations is None:
            durations = self.predict_durations(units, duration_scale)
        else:
            durations = [_check_durations(d, keep) for d, keep in zip(durations, spoken)]
            durations = [np.maximum(np.rint(d * duration_scale), 1).astype(int) for d in durations]
        codes, mask = _pad([np.repeat(u, d) for u, d in zip(units, durations)])
        speakers = [self._speaker_index(s) for s in (speakers or [0] * len(units))]
        wavs = np.asarray(_generate(self, codes, np.asarray(speakers, np.int32), mask))
        return [wav[: d.sum() * self.config.code_hop_size] for wav, d in zip(wavs, durations)]

    def __call__(
        self, units, durations=None, speaker: int | str = 0, duration_scale: float = 1.0
    ) -> np.ndarray:
        """One unit sequence -> wav, float32 [samples]; see `synthesize`."""
        durations = None if durations is None else [durations]
        return self.synthesize([units], durations, [speaker], duration_scale)[0]

    def _check_units(self, units) -> np.ndarray:
        units = np.asarray(units)
        if units.ndim != 1 or not units.size or not np.issubdtype(units.dtype, np.integer):
            raise ValueError(
                f"Expected a list of at least one unit (int), got {units.dtype} of shape {units.shape}."
            )
        if units.max() >= self.config.num_embeddings:
            raise ValueError(
                f"Unit {units.max()} is not among this vocoder's 0..{self.config.num_embeddings - 1}; "
                "units and vocoder must come from the same clustering."
            )
        return units.astype(np.int32)

    def _speaker_index(self, speaker: int | str) -> int:
        names = self.config.speakers
        if isinstance(speaker, str) and speaker in names:
            return names.index(speaker)
        if not isinstance(speaker, str) and 0 <= speaker < max(len(names), 1):
            return int(speaker)
        raise ValueError(
            f"Speaker {speaker!r} is not one of this vocoder's: {names or '0 (a single voice)'}."
        )

    def save_pretrained(self, folder: str | os.PathLike, dtype=np.float32) -> None:
        """Writes `model.safetensors` and `config.json`; each appears whole or not at all.

        `dtype` is that of the file only: float16 halves it.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat = nnx.to_flat_state(nnx.state(self, nnx.Param))
        tensors = {".".join(map(str, path)): np.asarray(v[...], dtype) for path, v in flat}
        _write_whole(folder / "model.safetensors", safetensors.save(tensors))
        _write_whole(folder / "config.json", json.dumps(self.config.to_json(), indent=2).encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "UnitVocoder":
        """Reads what `save_pretrained` wrote, as float32. ValueError where names or shapes differ from the config's."""
        folder = pathlib.Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} has no config.json; expected a folder written by save_pretrained."
            )
        config = VocoderConfig.from_json(json.loads((folder / "config.json").read_text()))
        tensors = safetensors.load_file(folder / "model.safetensors")
        model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        flat = nnx.to_flat_state(state)
        names = {".".join(map(str, path)): v.shape for path, v in flat}
        if names != {name: t.shape for name, t in tensors.items()}:
            wrong = sorted(set(names.items()) ^ {(name, t.shape) for name, t in tensors.items()})
            raise ValueError(
                f"{folder}/model.safetensors does not fit config.json; they differ in {wrong[:4]}."
            )
        loaded = [
            (path, v.replace(jnp.asarray(tensors[".".join(map(str, path))], jnp.float32)))
            for path, v in flat
        ]
        return nnx.merge(graph, nnx.from_flat_state(loaded))


_normal = nnx.initializers.normal(1.0)


@nnx.jit
def _frames(vocoder, codes, mask, duration_scale):
    frames = (jnp.exp(vocoder.log_durations(codes, mask)) - 1) * duration_scale
    return jnp.maximum(jnp.round(frames), 1).astype(jnp.int32)


@nnx.jit
def _generate(vocoder, codes, speakers, mask):
    return vocoder.generate(codes, speakers, mask)


def _bucket(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384, ...: every new length compiles, so a chat should meet few of them."""
    size = 64
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[5, 9], [7] -> codes [[5, 9, 0 ...], [7, 0, 0 ...]], mask [[1, 1, 0 ...], [1, 0, 0 ...]], up to a bucket."""
    lengths = np.asarray([len(s) for s in sequences])
    mask = np.arange(_bucket(lengths.max())) < lengths[:, None]
    codes = np.zeros(mask.shape, np.int32)
    codes[mask] = np.concatenate(sequences)
    return codes, mask.astype(np.float32)


def _check_durations(durations, spoken: np.ndarray) -> np.ndarray:
    durations = np.asarray(durations).reshape(-1)
    if len(durations) != len(spoken) or (durations < 1).any():
        raise ValueError(
            f"Expected one duration >= 1 (in codes of 20 ms) for each of {len(spoken)} units, "
            f"got {len(durations)}, the smallest {min(durations, default=None)}."
        )
    return durations[spoken]


def _write_whole(path: pathlib.Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
