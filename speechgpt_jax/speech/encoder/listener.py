"""How a HuBERT hears any recordings: how they are cut, heard and put together again.

However many there are and however long they are, few shapes are compiled and little is padded: the
front end hears pieces of a second, and the Transformer rows of frames in which recordings, or
windows of them, stand one after the other.

Shapes: P pieces of a second, B rows, S samples, T frames, D hidden size, C channels.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from speechgpt_jax.speech.cpu import devices as one_core
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.hubert import EncoderLayer, Hubert

FRAMES_PER_SECOND = 50
# A row is as long as one of these; so many pieces of a second are heard at once.
SECONDS = (2, 5, 10, 15, 20, 30, 40)
MOST_PIECES = 10
# An accelerator hears so many rows at once.
ROWS = 8
# Of a recording longer than a row, the Transformer sees windows of WINDOW frames, or of four times
# as many as a frame reaches; those at either end only serve the others that they reach. Where every
# frame reaches every other, windows have up to FAR frames, as many as fairseq hears at once, and
# CONTEXT of them serve: a second more hardly changes a unit. These are heard a PART at a time, each
# with the keys of all.
WINDOW, FAR, CONTEXT, PART = 2000, 5000, 50, 500
# What XLA is told for a CPU. Of float32 its own products are faster than YNNPACK's, which then
# only sums; of bfloat16 it has none.
FLOAT32 = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def _moments(hubert: Hubert, wav, frames):  # PS, P
    return hubert.front_end.moments(wav, frames), frames


def _project(hubert: Hubert, wav, moments):  # PS, P1C each -> PTD
    if jax.default_backend() != "cpu":
        return hubert.front_end(wav, moments)

    def project(piece):
        return hubert.front_end(*jax.tree.map(lambda x: x[None], piece))[0]

    # One piece stays in a core's cache.
    return lax.map(project, (wav, moments))


def _begin(hubert: Hubert, x, first):  # P(before + T + after)D, P -> PTD
    return hubert.begin(x, first)


def _transform(hubert: Hubert, centroids, x, segments):  # BTD, BT -> BT...
    return _heard(hubert.transform(x, segments, hubert.config.feature_layer), centroids)


def _keys_values(layer: EncoderLayer, x):
    return layer.keys_values(x)


def _attend(layer: EncoderLayer, others, x):
    return layer(x, jnp.ones(x.shape[:2], jnp.int32), others)


def _end(hubert: Hubert, centroids, x, segments):
    return _heard(hubert.end(x, segments), centroids)


def _heard(features, centroids):
    return features if centroids is None else kmeans.assign(features, centroids)


@functools.cache
def _jit(function: Callable, options: tuple) -> Callable:
    return jax.jit(function, compiler_options=dict(options))


def _run(module: Hubert | EncoderLayer, function: Callable, alone: bool, *args):
    """A function of a module and arrays -> its arrays, when they are there.

    Alone, it has one core; the module is on such a device.
    """
    options = {}
    if jax.default_backend() == "cpu":
        options |= one_core.OPTIONS if alone else {}
        options |= FLOAT32 if module.dtype == np.float32 else {}
    # Accelerators would multiply float32 as if it were less.
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, _jit(function, tuple(options.items()))(module, *args))


@dataclasses.dataclass(frozen=True)
class Listener:
    """Listener(hubert, centroids).hear([wav, ...]) -> cluster ids of each.

    Attributes:
      centroids: [K, D]; without, features are what is heard.
      whole_seconds: what is longer is heard in overlapping windows or, where attention has no
        bound, part by part; every frame is kept.
      each: a `map`, perhaps one that does `ways` at once.
      alone: for programs that run at once, the same HuBERT on devices of one core, each given
        back after use; or None.
    """

    hubert: Hubert
    centroids: np.ndarray | None
    whole_seconds: float
    each: Callable[..., Iterable] = map
    ways: int = 1
    alone: SimpleQueue | None = None

    def hear(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """wavs of [S] -> features [T, D] or cluster ids [T] of each."""
        x = self.begin(self.project(wavs))
        whole, reach = self.whole_seconds * FRAMES_PER_SECOND, self.hubert.config.reach
        segments, in_parts = [], []
        for clip, frames in enumerate(map(len, x)):
            if frames <= whole:
                segments += [(clip, (0, frames, 0, frames))] * (frames > 0)
            elif reach < math.inf:
                longest = max(WINDOW, 4 * reach)
                segments += [(clip, window) for window in windows(frames, longest, reach)]
            else:
                in_parts.append(clip)
        size = (self.hubert.config.feature_size,) if self.centroids is None else ()
        nothing = np.zeros((0, *size), np.float32 if size else np.int32)
        heard = [[nothing] for _ in wavs]
        for (clip, _), kept in zip(segments, self.transform(x, segments)):
            heard[clip].append(kept)
        for clip in in_parts:
            heard[clip] += [
                self.transform_together(x[clip][start : start + size])[first:end]
                for start, size, first, end in windows(len(x[clip]), FAR, CONTEXT)
            ]
        return [np.concatenate(parts) for parts in heard]

    def project(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """The front end: wavs of [S] -> [T, D] each, as if none had been cut."""
        config = self.hubert.config
        sounds = [np.pad(wav, config.padding) for wav in wavs]
        size = FRAMES_PER_SECOND * config.hop
        # Samples that a piece, or one of the first layer's frames, reaches beyond its own.
        beyond, first_beyond = (
            field - hop
            for field, hop in (
                (config.receptive_field, config.hop),
                (config.conv_kernel[0], config.conv_stride[0]),
            )
        )

        def first_piece(clip, number):
            piece = sounds[clip][number * size :][: size + first_beyond]
            return cut(piece, 0, size + first_beyond), np.int32(config.first_frames(len(piece)))

        counts = [-(-max(len(sound) - first_beyond, 0) // size) for sound in sounds]
        moments = [
            self.hubert.front_end.pool(*of_pieces) if count else None
            for count, of_pieces in zip(counts, self.by_piece(_moments, counts, first_piece))
        ]

        def piece(clip, number):
            return cut(sounds[clip], number * size, size + beyond), moments[clip]

        return self.frame_by_frame(_project, [config.num_frames(len(wav)) for wav in wavs], piece)

    def begin(self, x: list[np.ndarray]) -> list[np.ndarray]:
        """[T, D] each -> [T, D] each, with positions."""
        before, after = self.hubert.positions.context

        def piece(clip, number):
            first = number * FRAMES_PER_SECOND
            frames = cut(x[clip], first - before, before + FRAMES_PER_SECOND + after)
            return frames, np.int32(first)

        return self.frame_by_frame(_begin, [len(frames) for frames in x], piece)

    def transform(self, x: list[np.ndarray], segments: list[tuple]) -> list[np.ndarray]:
        """What is heard of each segment (recording, its window): its frames that are kept."""
        sizes = [window[1] for _, window in segments]
        rows = first_fit(sizes, max([*sizes, SECONDS[-1] * FRAMES_PER_SECOND]))
        longest = max((sum(sizes[i] for i in row) for row in rows), default=0)
        length = in_steps(longest / FRAMES_PER_SECOND) * FRAMES_PER_SECOND
        at_once = 1 if jax.default_backend() == "cpu" else min(ROWS, len(rows))
        batches = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]

        def run(batch):
            frames = np.zeros((at_once, length, self.hubert.config.hidden_size), np.float32)
            numbers = np.zeros((at_once, length), np.int32)
            places = {}
            for row, members in enumerate(batch):
                end = 0
                for i in members:
                    clip, (start, size, _, _) = segments[i]
                    places[i] = row, slice(end, end + size)
                    frames[places[i]] = x[clip][start : start + size]
                    numbers[places[i]] = i + 1
                    end += size
            alone = len(batches) >= self.ways
            heard = self.call(_transform, alone, self.centroids, frames, numbers)
            return {i: heard[place] for i, place in places.items()}

        heard = {}
        for of_batch in self.each(run, batches):
            heard |= of_batch
        return [heard[i][first:end] for i, (_, (_, _, first, end)) in enumerate(segments)]

    def transform_together(self, x: np.ndarray) -> np.ndarray:
        """Frames [T, D] that all attend to all, layer by layer, a part on each core at a time."""
        size, parts = len(x), split(x, self.ways)
        numbers = (np.arange(len(parts) * parts[0].shape[1]) < size).astype(np.int32)[None]

        def run(function, layer, *args):
            call = functools.partial(self.call, function, True, *args, layer=layer)
            return [*self.each(call, parts)]

        for layer in range(self.hubert.config.feature_layer):
            keys_values = (np.concatenate(y, axis=1) for y in zip(*run(_keys_values, layer)))
            parts = run(_attend, layer, (*keys_values, numbers))
        x = np.concatenate(parts, axis=1)
        return self.call(_end, False, self.centroids, x, numbers)[0, :size]

    def frame_by_frame(self, function: Callable, frames: list[int], piece: Callable):
        """As `by_piece`, for a function -> [P, T, D] of as many frames of each clip: [T, D]."""
        counts = [-(-n // FRAMES_PER_SECOND) for n in frames]
        heard = self.by_piece(function, counts, piece)
        width = self.hubert.config.hidden_size
        return [
            x.reshape(-1, width)[:n] if n else np.zeros((0, width)) for x, n in zip(heard, frames)
        ]

    def by_piece(self, function: Callable, counts: list[int], piece: Callable) -> list:
        """What a function (hubert, *arrays [P, ...]) -> [P, ...] gives of each clip's pieces.

        Args:
          counts: how many pieces each clip has.
          piece: (clip, number of the piece) -> its arrays.
        """
        places = [(clip, number) for clip, count in enumerate(counts) for number in range(count)]
        if not places:
            return [None] * len(counts)
        size = min(in_steps(len(places) / self.ways), MOST_PIECES)
        chunks = [places[i : i + size] for i in range(0, len(places), size)]

        def run(chunk):
            pieces = [piece(*place) for place in chunk]
            pieces += pieces[:1] * (size - len(chunk))
            arrays = jax.tree.map(lambda *x: np.stack(x), *pieces)
            heard = self.call(function, len(chunks) >= self.ways, *arrays)
            return jax.tree.map(lambda x: x[: len(chunk)], heard)

        heard = jax.tree.map(lambda *x: np.concatenate(x), *self.each(run, chunks))
        ends = np.cumsum(counts)
        slices = [slice(end - count, end) for count, end in zip(counts, ends)]
        return [jax.tree.map(operator.itemgetter(pieces), heard) for pieces in slices]

    def call(self, function: Callable, alone: bool, *args, layer: int | None = None):
        """What a function gives of the HuBERT, or a layer, and arrays; alone it has one core."""
        alone = alone and self.alone is not None
        hubert = self.alone.get() if alone else self.hubert
        try:
            return _run(hubert if layer is None else hubert.layers[layer], function, alone, *args)
        finally:
            if alone:
                self.alone.put(hubert)


def cut(x: np.ndarray, start: int, size: int) -> np.ndarray:
    """x[start : start + size], with zeros where x has not begun or has ended."""
    part = x[max(start, 0) : max(start + size, 0)]
    before = min(max(-start, 0), size)
    return np.pad(part, [(before, size - before - len(part)), *[(0, 0)] * (x.ndim - 1)])


def in_steps(seconds: float) -> int:
    """At least so many, out of `SECONDS` or whole 16."""
    return next((edge for edge in SECONDS if edge >= seconds), math.ceil(seconds / 16) * 16)


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the sizes that go together, the largest first, each where there is room.

    first_fit([3, 9, 6, 1], 10) -> [[1, 3], [2, 0]]
    """
    rows, room = [], []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((row for row, left in enumerate(room) if left >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= sizes[i]
    return rows


def split(x: np.ndarray, ways: int) -> list[np.ndarray]:
    """x [T, D] -> parts [1, size, D] of whole seconds, as many for each way; zeros follow."""
    count = ways * math.ceil(len(x) / (ways * PART))
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
