"""Sound -> units: HuBERT features, nearest centroid, repeats merged."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.speech import kmeans, pretrained
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.hubert import EncoderLayer, Hubert
from speechgpt_jax.speech.hubert_config import HubertConfig
from speechgpt_jax.unit_text import reduce_units

# Sound is padded to one of these lengths, so that few shapes are compiled.
SECONDS = (2, 5, 8, 12, 16, 20, 25, 30)
# Of a longer recording, the Transformer sees windows of at most WINDOW frames, of which those at
# either end only serve the others that they reach. Where every frame reaches every other, windows
# have up to FAR frames, as many as fairseq hears at once, and CONTEXT of them serve: a second more
# hardly changes a unit. These are heard a PIECE at a time, each with the keys of all.
WINDOW, FAR, CONTEXT, PIECE, FRAMES_PER_SECOND = 1000, 5000, 50, 500, 50
# What XLA is told for one core: its own products are faster there than YNNPACK's, which then only
# sums.
ONE_CORE = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}
SHIPPED = pathlib.Path(__file__).parent.parent / "assets" / "hubert_tiny"


def _heard(features, centroids):
    return features if centroids is None else kmeans.assign(features, centroids)


def _encode(hubert: Hubert, wav, lengths, centroids):
    return _heard(hubert(wav, lengths), centroids)


def _encode_window(hubert: Hubert, x, first, centroids):
    frames = jnp.full(len(x), x.shape[1])
    return _heard(hubert.encode(x, frames, hubert.config.feature_layer, first), centroids)


def _begin(hubert: Hubert, x, first):
    return hubert.begin(x, first)


def _keys_values(layer: EncoderLayer, x):
    return layer.keys_values(x)


def _attend(layer: EncoderLayer, frames, keys_values, x):
    return layer(x, frames, keys_values)


def _end(hubert: Hubert, centroids, x):
    return _heard(hubert.end(x), centroids)


def _moments(hubert: Hubert, wav, lengths):
    return hubert.moments(hubert.front_end.analyse(wav), lengths)


def _project(hubert: Hubert, wav, moments):
    return hubert.front_end(hubert.front_end.analyse(wav), moments)


@functools.cache
def _jit(function: Callable, one_core: bool) -> Callable:
    return jax.jit(function, compiler_options=ONE_CORE if one_core else None)


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
      whole_seconds: longer recordings are heard in overlapping windows; every frame is kept.
      one_core: of a CPU, leave the other cores to the caller, who calls from as many threads. Two
        programs on a core each hear a quarter more than one at a time on both.
    """

    hubert: Hubert
    centroids: np.ndarray | None
    whole_seconds: float = SECONDS[-1]
    one_core: bool = False

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
        return self._encode(wavs, self.centroids)

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
        rows = self._run(_encode, self.hubert, *pad(wavs), centroids)
        frames = [self.hubert.config.num_frames(len(wav)) for wav in wavs]
        return [row[:n] for row, n in zip(rows, frames)]

    def _encode_long(self, wav, centroids) -> np.ndarray:
        several = math.ceil(self.hubert.config.num_frames(len(wav)) / WINDOW)
        if self.one_core or not 1 < cores() <= several:
            return self._encode_windows(wav, centroids)
        with ThreadPoolExecutor(cores()) as pool:
            each_on_a_core = dataclasses.replace(self, one_core=True)
            return each_on_a_core._encode_windows(wav, centroids, pool.map)

    def _encode_windows(self, wav, centroids, each: Callable[..., Iterable] = map) -> np.ndarray:
        """`each` is a `map`, perhaps one that does several at once."""
        x = self._project_long(wav, each)
        reach = self.hubert.config.reach
        if reach > WINDOW // 4:
            together = functools.partial(self._encode_together, centroids, each)
            return in_windows(together, x, FAR, CONTEXT)

        def encode(x, first):
            return self._run(_encode_window, self.hubert, x[None], first, centroids)[0]

        return in_windows(encode, x, WINDOW, reach, each)

    def _encode_together(self, centroids, each, x, first) -> np.ndarray:
        """Frames x [T, D] that all attend to all, layer by layer, in pieces on each core."""
        hubert, frames = self.hubert, np.array([len(x)])

        def begin(x, start):
            return self._run(_begin, hubert, x[None], first + start)[0]

        def run(function, *args):
            return [*each(functools.partial(self._run, function, *args), pieces)]

        x = in_windows(begin, x, WINDOW, hubert.config.position_kernel // 2, each)
        pieces = split(x, cores())
        for layer in hubert.layers[: hubert.config.feature_layer]:
            keys_values = zip(*run(_keys_values, layer))
            keys_values = tuple(jnp.asarray(np.concatenate(v, axis=1)) for v in keys_values)
            pieces = run(_attend, layer, frames, keys_values)
        return np.concatenate(run(_end, hubert, centroids), axis=1)[0, : len(x)]

    def _project_long(self, wav, each=map) -> np.ndarray:
        """The front end's [T, D], piece by piece and yet the same as at once."""
        config = self.hubert.config
        num_frames, wav = config.num_frames(len(wav)), np.pad(wav, config.padding)
        moments = self._moments_long(wav, each)
        # A piece of n frames reaches beyond n hops.
        beyond = config.receptive_field - config.hop

        def project(window):
            start, size, first, end = window
            piece = wav[None, start * config.hop : (start + size) * config.hop + beyond]
            return self._run(_project, self.hubert, piece, moments)[0, first:end]

        return np.concatenate([*each(project, windows(num_frames, WINDOW, 0))])

    def _moments_long(self, wav, each=map):
        """What the first layer is normalised by, over the whole recording with its padding."""
        config = self.hubert.config
        size, beyond = WINDOW * config.hop, config.conv_kernel[0] - config.conv_stride[0]
        starts = range(0, len(wav) - beyond, size)
        pieces = [wav[start : start + size + beyond] for start in starts]

        def moments(piece):
            padded = np.pad(piece, (0, size + beyond - len(piece)))[None]
            return self._run(_moments, self.hubert, padded, np.array([len(piece)]))

        frames = [config.first_frames(len(piece)) for piece in pieces]
        return self.hubert.front_end.pool([*each(moments, pieces)], frames)

    def _run(self, function, *args):
        """A function of a module and arrays -> its arrays, when they are there."""
        return jax.tree.map(np.asarray, _jit(function, self.one_core)(*args))


def in_windows(
    function: Callable, x: np.ndarray, longest: int, context: int, each: Callable = map
) -> np.ndarray:
    """`function` (window [size, D], number of its first frame) -> [size, ...], for all of x."""

    def kept(window):
        start, size, first, end = window
        return function(x[start : start + size], start)[first:end]

    return np.concatenate([*each(kept, windows(len(x), longest, context))])


def split(x: np.ndarray, ways: int) -> list[np.ndarray]:
    """x [T, D] -> pieces [1, size, D] of whole seconds, as many for each way; zeros follow."""
    count = ways * math.ceil(len(x) / (ways * PIECE))
    size = -(-len(x) // (count * FRAMES_PER_SECOND)) * FRAMES_PER_SECOND
    return np.split(np.pad(x, ((0, count * size - len(x)), (0, 0)))[None], count, axis=1)


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
