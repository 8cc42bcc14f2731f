"""Sound -> units: HuBERT features, nearest centroid of k-means, repeats removed."""

import dataclasses
import math
import os
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from flax import nnx

from speechgpt_jax import files, shipped
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import pretrained
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_samples
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import stages
from speechgpt_jax.speech.encoder.batching import ROW_SECONDS
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.runner import Runner
from speechgpt_jax.unit_text import reduce_units

# Types of the factors of products.
DTYPES = ("float32", "bfloat16")
CENTROIDS = "kmeans.safetensors"


@dataclasses.dataclass(frozen=True)
class Speech2Unit:
    """Speech encoder: recordings at 16 kHz -> units.

        speech2unit = Speech2Unit.from_pretrained()
        units, durations = speech2unit(wav)

    Shapes: S samples, T frames, N reduced units, F size of a feature vector, K clusters.

    Attributes:
      hubert: made by `for_inference`.
      centroids: [K, F]; None if only features are computed.
      whole_seconds: longer recordings are encoded in overlapping windows or, where frames attend to
        the whole recording, in parts; every frame is kept.
    """

    hubert: Hubert
    centroids: np.ndarray | None
    whole_seconds: float = ROW_SECONDS
    _runner: Runner = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        # One for all threads that encode.
        object.__setattr__(self, "_runner", Runner(self.hubert))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike = shipped.SHIPPED_HUBERT, dtype: str = "float32"
    ) -> "Speech2Unit":
        """Reads a folder of `config.json`, `model.safetensors` and `kmeans.safetensors`.

        Args:
          folder: local or gs://.
          dtype: type of the factors of products. "bfloat16" is faster on accelerators, and on CPUs
            that multiply it, and changes at most about one unit in a hundred.

        Raises:
          UserError: no such dtype, or the folder is incomplete, damaged or inconsistent.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}.")
        config, centroids = load_config(folder), load_centroids(folder)
        if centroids.shape[1:] != (config.feature_size,):
            raise UserError(
                f"{folder} holds centroids of shape {centroids.shape}; "
                f"expected [clusters, {config.feature_size}] for this HuBERT."
            )
        return cls(for_inference(load_hubert(folder), dtype), centroids)

    @property
    def num_units(self) -> int:
        """Number of clusters K."""
        assert self.centroids is not None, "this Speech2Unit has no centroids"
        return len(self.centroids)

    def __call__(self, wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """wav [S] -> reduced units [N], durations [N] in frames of 20 ms.

        Both are empty for sound shorter than a frame (400 samples, 25 ms).

        Raises:
          UserError: see `cluster_ids`.
        """
        (cluster_ids,) = self.cluster_ids([wav])
        return reduce_units(cluster_ids)

    def cluster_ids(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """wavs [S] -> cluster ids, int32 [T] each, which do not depend on the other wavs.

        Raises:
          UserError: a wav is not float mono, or holds samples that `check_samples` refuses.
        """
        return self._encode(wavs, self.centroids)

    def features(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """wavs [S] -> HuBERT features before clustering, float32 [T, F] each.

        Raises:
          UserError: see `cluster_ids`.
        """
        return self._encode(wavs, None)

    def warm_up(self, seconds: float) -> None:
        """Compiles the programs for single recordings of up to `seconds`, as far as it can."""
        compiled: set = set()
        for whole in range(1, math.ceil(seconds) + 1):
            needed = stages.programs(self._runner, whole, self.whole_seconds)
            if not needed <= compiled:
                # A whole second would need a second piece: padding and overlap of windows reach
                # beyond it.
                self(np.zeros(whole * SAMPLE_RATE - SAMPLE_RATE // 10, np.float32))
                compiled |= needed

    def _encode(self, wavs: list[np.ndarray], centroids: np.ndarray | None) -> list[np.ndarray]:
        for wav in wavs:
            check_sound(wav)
        frames = stages.project(self._runner, wavs)
        frames = stages.add_positions(self._runner, frames)
        return stages.transform(self._runner, frames, centroids, self.whole_seconds)


def check_sound(wav: Any) -> None:
    """Raises a UserError if wav is not float [S], or holds samples that `check_samples` refuses."""
    wav = np.asarray(wav)
    if wav.ndim != 1 or not np.issubdtype(wav.dtype, np.floating):
        raise UserError(
            f"Expected mono sound, float [samples] in [-1, 1] at 16 kHz, got "
            f"{wav.dtype} {list(wav.shape)}; load_audio returns such sound."
        )
    check_samples(wav, "The sound")


# ---- folders -------------------------------------------------------------------------------------


def load_config(folder: str | os.PathLike) -> HubertConfig:
    """Configuration of the HuBERT in a folder; UserError if there is none."""
    return HubertConfig.from_json(pretrained.load_fields(folder), f"{folder}/config.json")


def load_hubert(folder: str | os.PathLike) -> Hubert:
    """HuBERT of a folder written by `save_hubert`, to train or for `for_inference`; float32.

    Raises:
      UserError: the folder is incomplete, damaged or inconsistent.
    """
    config = load_config(folder)
    return pretrained.load_model(folder, lambda: Hubert(config, rngs=nnx.Rngs(0)))


def save_hubert(
    folder: str | os.PathLike, hubert: Hubert, dtype: np.typing.DTypeLike = np.float32
) -> None:
    """Writes `config.json` and `model.safetensors`, parameters as `dtype`."""
    pretrained.save_model(folder, hubert, dataclasses.asdict(hubert.config), dtype)


def load_centroids(folder: str | os.PathLike) -> np.ndarray:
    """Centroids beside a HuBERT, float32 [K, F]; UserError if there are none."""
    path = epath.Path(folder) / CENTROIDS
    tensors = pretrained.load_tensors(path)
    if "cluster_centers" not in tensors:
        raise UserError(f"{path} holds {sorted(tensors)}; expected cluster_centers.")
    return tensors["cluster_centers"].astype(np.float32)


def save_centroids(folder: str | os.PathLike, centroids: np.ndarray) -> None:
    """Writes centroids [K, F] beside a HuBERT."""
    tensors = {"cluster_centers": np.asarray(centroids, np.float32)}
    files.write_bytes(epath.Path(folder) / CENTROIDS, safetensors.numpy.save(tensors))
