"""Sound -> units: HuBERT features, nearest centroid, repeats merged."""

import dataclasses
import math
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech import kmeans, pretrained
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.hubert import Hubert
from speechgpt_jax.speech.hubert_config import HubertConfig
from speechgpt_jax.unit_text import reduce_units

# Sound is padded to one of these lengths, so that few shapes are compiled.
SECONDS = (1, 2, 4, 6, 10, 16, 24, 32)
# Of a longer recording, the Transformer sees windows of at most WINDOW frames. Some at either end
# only serve the others: as many as reach them or, where every frame does, CONTEXT: a second more
# hardly changes a unit.
WINDOW, CONTEXT, FRAMES_PER_SECOND = 800, 50, 50
SHIPPED = pathlib.Path(__file__).parent.parent / "assets" / "hubert_tiny"


def _heard(features, centroids):
    return features if centroids is None else kmeans.assign(features, centroids)


@nnx.jit
def _encode(hubert: Hubert, wav, lengths, centroids):
    return _heard(hubert(wav, lengths), centroids)


@nnx.jit
def _encode_window(hubert: Hubert, x, first, centroids):
    frames = jnp.full(len(x), x.shape[1])
    return _heard(hubert.encode(x, frames, hubert.config.feature_layer, first), centroids)


@nnx.jit
def _moments(hubert: Hubert, wav, lengths):
    return hubert.moments(hubert.front_end.analyse(wav), lengths)


@nnx.jit
def _project(hubert: Hubert, wav, moments):
    return hubert.front_end(hubert.front_end.analyse(wav), moments)


@dataclasses.dataclass(frozen=True)
class Speech2Unit:
    """speech2unit = Speech2Unit.from_pretrained(); units, durations = speech2unit(wav).

    Attributes:
      hubert, centroids: the ears; centroids [K, D], None where only features are wanted.
      whole_seconds: longer recordings are heard in overlapping windows; every frame is kept.
    """

    hubert: Hubert
    centroids: np.ndarray | None
    whole_seconds: float = SECONDS[-1]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike = SHIPPED) -> "Speech2Unit":
        """Reads a folder of `config.json`, `model.safetensors` and `kmeans.safetensors`."""
        hubert = load_hubert(folder)
        path = pathlib.Path(folder) / "kmeans.safetensors"
        centroids = pretrained.load_tensors(path)["cluster_centers"].astype(np.float32)
        if centroids.shape[1:] != (hubert.config.hidden_size,):
            raise ValueError(
                f"{path} holds centroids of shape {centroids.shape}; "
                f"expected [clusters, {hubert.config.hidden_size}] for this HuBERT."
            )
        return cls(hubert, centroids)

    @property
    def num_units(self) -> int:
        return len(self.centroids)

    def __call__(self, wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """wav [S] at 16 kHz -> reduced units [N], durations [N] in frames of 20 ms.

        Both are empty for sound shorter than a frame (400 samples, 25 ms).
        """
        return reduce_units(self.cluster_ids([wav])[0])

    def cluster_ids(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """The unit of every frame: wavs of [S] -> one int32 [T] each, alike alone or together.

        Raises:
          ValueError: a wav is not float mono, or holds NaN or infinite samples.
        """
        return self._encode(wavs, jnp.asarray(self.centroids))

    def features(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """HuBERT's features before clustering: wavs of [S] -> one float32 [T, D] each."""
        return self._encode(wavs, None)

    def _encode(self, wavs, centroids) -> list[np.ndarray]:
        """Clips of one window go in one batch, longer recordings one by one."""
        for wav in wavs:
            _check(wav)
        samples = self.whole_seconds * SAMPLE_RATE
        together = iter(self._encode_batch([w for w in wavs if len(w) <= samples], centroids))
        return [
            next(together) if len(wav) <= samples else self._encode_long(wav, centroids)
            for wav in wavs
        ]

    def _encode_batch(self, wavs, centroids) -> list[np.ndarray]:
        if not wavs:
            return []
        rows = np.asarray(_encode(self.hubert, *pad(wavs), centroids))
        frames = [self.hubert.config.num_frames(len(wav)) for wav in wavs]
        return [row[:n] for row, n in zip(rows, frames)]

    def _encode_long(self, wav, centroids) -> np.ndarray:
        x, heard = self._project_long(wav), []
        reach = self.hubert.config.reach
        context = reach if reach <= WINDOW // 4 else CONTEXT
        for start, size, first, end in windows(len(x), WINDOW, context):
            rows = _encode_window(self.hubert, x[None, start : start + size], start, centroids)
            heard.append(np.asarray(rows)[0, first:end])
        return np.concatenate(heard)

    def _project_long(self, wav) -> np.ndarray:
        """The front end's [T, D], piece by piece and yet the same as at once."""
        config, pieces = self.hubert.config, []
        num_frames, wav = config.num_frames(len(wav)), np.pad(wav, config.padding)
        moments = self._moments_long(wav)
        # A piece of n frames reaches beyond n hops.
        beyond = config.receptive_field - config.hop
        for start, size, first, end in windows(num_frames, WINDOW, 0):
            piece = wav[None, start * config.hop : (start + size) * config.hop + beyond]
            pieces.append(np.asarray(_project(self.hubert, piece, moments))[0, first:end])
        return np.concatenate(pieces)

    def _moments_long(self, wav):
        """What the first layer is normalised by, over the whole recording with its padding."""
        config = self.hubert.config
        size, beyond = WINDOW * config.hop, config.conv_kernel[0] - config.conv_stride[0]
        moments, frames = [], []
        for start in range(0, len(wav) - beyond, size):
            piece = wav[start : start + size + beyond]
            padded = np.pad(piece, (0, size + beyond - len(piece)))[None]
            moments.append(_moments(self.hubert, padded, np.array([len(piece)])))
            frames.append(config.first_frames(len(piece)))
        return self.hubert.front_end.pool(moments, frames)


def windows(total: int, longest: int, context: int) -> list[tuple[int, int, int, int]]:
    """Overlapping windows of one size over `total` frames, and which frames are kept of each.

    windows(10, 6, 1) -> [(0, 6, 0, 5), (4, 6, 1, 6)]: start, size, and the slice of the window that
    is kept; `context` frames are not, but at the two ends. Sizes are whole seconds where they fit,
    so that few shapes are compiled.
    """
    count = math.ceil(max(total - 2 * context, 1) / (longest - 2 * context))
    size = math.ceil((total - 2 * context) / count) + 2 * context
    size = min(-(-size // FRAMES_PER_SECOND) * FRAMES_PER_SECOND, longest, total)
    starts = [min(i * (size - 2 * context), total - size) for i in range(count)]
    ends = [start + size - context for start in starts[:-1]] + [total]
    firsts = [0, *ends[:-1]]
    return [(s, size, first - s, end - s) for s, first, end in zip(starts, firsts, ends)]


def _check(wav: np.ndarray) -> None:
    if np.ndim(wav) != 1 or not np.issubdtype(np.asarray(wav).dtype, np.floating):
        raise ValueError(
            f"Expected mono sound, float [samples] in [-1, 1] at 16 kHz, got "
            f"{np.asarray(wav).dtype} {list(np.shape(wav))}; load_audio reads files so."
        )
    if not np.isfinite(wav).all():
        raise ValueError("The sound holds NaN or infinite samples; expected values in [-1, 1].")


def load_hubert(folder: str | os.PathLike) -> Hubert:
    """The HuBERT of a folder written by `save_hubert`."""
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in pretrained.load_fields(folder).items()
    }
    try:
        config = HubertConfig(**fields)
    except TypeError as error:
        raise ValueError(f"{folder}/config.json is not that of a HuBERT: {error}") from error
    return pretrained.load_model(folder, lambda: Hubert(config, rngs=nnx.Rngs(0)))


def save_hubert(folder: str | os.PathLike, hubert: Hubert, dtype=np.float32) -> None:
    pretrained.save_model(folder, hubert, dataclasses.asdict(hubert.config), dtype)


def pad(wavs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """wavs of [S] -> wav [B, S'] with S' from `SECONDS` (or whole 16 s), lengths [B] in samples."""
    lengths = np.array([len(wav) for wav in wavs], np.int32)
    seconds = max(lengths.max(), 1) / SAMPLE_RATE
    bucket = next((edge for edge in SECONDS if edge >= seconds), -(-seconds // 16) * 16)
    wav = np.zeros((len(wavs), int(bucket) * SAMPLE_RATE), np.float32)
    for row, clip in zip(wav, wavs):
        row[: len(clip)] = clip
    return wav, lengths
