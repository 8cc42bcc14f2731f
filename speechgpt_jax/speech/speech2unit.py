"""Sound -> units: HuBERT features, nearest centroid, repeats merged."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech import kmeans, pretrained
from speechgpt_jax.speech.hubert import Hubert, HubertConfig
from speechgpt_jax.unit_text import reduce_units

# Sound is padded to one of these lengths, so that few shapes are compiled. A second is 16000.
SECONDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHIPPED = pathlib.Path(__file__).parent.parent / "assets" / "hubert_tiny"


@nnx.jit
def _cluster_ids(hubert: Hubert, wav, lengths, centroids):
    return kmeans.assign(hubert(wav, lengths), centroids)


@nnx.jit
def _features(hubert: Hubert, wav, lengths):
    return hubert(wav, lengths)


@dataclasses.dataclass(frozen=True)
class Speech2Unit:
    """speech2unit = Speech2Unit.from_pretrained(); units, durations = speech2unit(wav)."""

    hubert: Hubert
    centroids: np.ndarray  # [K, D]

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
        """The unit of every frame: wavs of [S] -> one int32 [T] each, alike alone or together."""
        ids = _cluster_ids(self.hubert, *pad(wavs), jnp.asarray(self.centroids))
        return self._trim(ids, wavs)

    def features(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """HuBERT's features before clustering: wavs of [S] -> one float32 [T, D] each."""
        return self._trim(_features(self.hubert, *pad(wavs)), wavs)

    def _trim(self, rows, wavs: list[np.ndarray]) -> list[np.ndarray]:
        frames = [self.hubert.config.num_frames(len(wav)) for wav in wavs]
        return [row[:n] for row, n in zip(np.asarray(rows), frames)]


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
    seconds = max(lengths.max(), 1) / 16_000
    bucket = next((edge for edge in SECONDS if edge >= seconds), -(-seconds // 16) * 16)
    wav = np.zeros((len(wavs), int(bucket) * 16_000), np.float32)
    for row, clip in zip(wav, wavs):
        row[: len(clip)] = clip
    return wav, lengths
