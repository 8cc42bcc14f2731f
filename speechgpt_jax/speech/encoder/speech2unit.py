"""Sound -> units: HuBERT features, nearest centroid, repeats merged."""

import dataclasses
import functools
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import ASSETS
from speechgpt_jax.speech import pretrained
from speechgpt_jax.speech.cpu import devices as one_core
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.listener import SECONDS, Listener
from speechgpt_jax.unit_text import reduce_units

SHIPPED = ASSETS / "hubert_tiny"


def cores() -> int:
    """How many programs of one core may run at once: those of a CPU; an accelerator is one."""
    if jax.default_backend() != "cpu":
        return 1
    # Linux knows which of its CPUs this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclasses.dataclass(frozen=True)
class Speech2Unit:
    """speech2unit = Speech2Unit.from_pretrained(); units, durations = speech2unit(wav).

    Attributes:
      hubert, centroids: the ears; centroids [K, D], None where only features are wanted.
      whole_seconds: what is longer is heard in overlapping windows or, where attention has no
        bound, part by part; every frame is kept.
    """

    hubert: Hubert
    centroids: np.ndarray | None
    whole_seconds: float = SECONDS[-1]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike = SHIPPED, dtype: str = "float32"
    ) -> "Speech2Unit":
        """Reads a folder of `config.json`, `model.safetensors` and `kmeans.safetensors`.

        With dtype "bfloat16" products are of such numbers, their sums float32: accelerators, and
        CPUs that multiply them, hear faster, and at most about one unit in a hundred is another.
        """
        hubert = load_hubert(folder)
        hubert.prepare(jnp.dtype(dtype))
        centroids = load_centroids(folder)
        if centroids.shape[1:] != (hubert.config.feature_size,):
            raise UserError(
                f"{folder} holds centroids of shape {centroids.shape}; "
                f"expected [clusters, {hubert.config.feature_size}] for this HuBERT."
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
          UserError: a wav is not float mono, or holds NaN or infinite samples.
        """
        return self._encode(wavs, self.centroids)

    def features(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """HuBERT's features before clustering: wavs of [S] -> one float32 [T, D] each."""
        return self._encode(wavs, None)

    def _encode(self, wavs, centroids) -> list[np.ndarray]:
        for wav in wavs:
            _check(wav)
        listener = functools.partial(Listener, self.hubert, centroids, self.whole_seconds)
        ways = cores()
        if ways == 1:
            return listener().hear(wavs)
        with ThreadPoolExecutor(ways) as pool:
            return listener(pool.map, ways, self._alone).hear(wavs)

    @functools.cached_property
    def _alone(self) -> SimpleQueue:
        """The HuBERT on a device of one core for each; its numbers are not copied."""
        queue = SimpleQueue()
        for number in range(cores()):
            queue.put(jax.device_put(self.hubert, one_core.device(number)))
        return queue


def _check(wav: np.ndarray) -> None:
    if np.ndim(wav) != 1 or not np.issubdtype(np.asarray(wav).dtype, np.floating):
        raise UserError(
            f"Expected mono sound, float [samples] in [-1, 1] at 16 kHz, got "
            f"{np.asarray(wav).dtype} {list(np.shape(wav))}; load_audio reads files so."
        )
    if not np.isfinite(wav).all():
        raise UserError("The sound holds NaN or infinite samples; expected values in [-1, 1].")


def load_hubert(folder: str | os.PathLike) -> Hubert:
    """The HuBERT of a folder written by `save_hubert`."""
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in pretrained.load_fields(folder).items()
    }
    try:
        config = HubertConfig(**fields)
    except TypeError as error:
        raise UserError(f"{folder}/config.json is not that of a HuBERT: {error}") from error
    return pretrained.load_model(folder, lambda: Hubert(config, rngs=nnx.Rngs(0)))


def load_centroids(folder: str | os.PathLike) -> np.ndarray:
    """The centroids beside a HuBERT, float32 [K, D]; UserError where there are none."""
    path = pathlib.Path(folder) / "kmeans.safetensors"
    tensors = pretrained.load_tensors(path)
    if "cluster_centers" not in tensors:
        raise UserError(f"{path} holds {sorted(tensors)}; expected cluster_centers.")
    return tensors["cluster_centers"].astype(np.float32)


def save_hubert(folder: str | os.PathLike, hubert: Hubert, dtype=np.float32) -> None:
    pretrained.save_model(folder, hubert, dataclasses.asdict(hubert.config), dtype)
