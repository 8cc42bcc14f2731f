"""The three steps of a HuBERT over many recordings: front end, positions, Transformer.

Up to rounding, results do not depend on the other recordings or on how a recording is cut. The one
exception: a model without `attention_frames` encodes recordings over 100 s in windows.

Shapes: P pieces of one second, B rows, S samples, T frames, D hidden size, C channels, F size of a
feature vector, K clusters.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speechgpt_jax.speech.encoder import batching, kmeans
from speechgpt_jax.speech.encoder.batching import PIECE_FRAMES
from speechgpt_jax.speech.encoder.front_ends import Statistics
from speechgpt_jax.speech.encoder.hubert import EncoderLayer, Hubert, KeysValues, standardize
from speechgpt_jax.speech.encoder.runner import Runner
from speechgpt_jax.speech.encoder.windows import Window, windows_of
from speechgpt_jax.speech.recordings import FRAMES_PER_SECOND


def project(runner: Runner, wavs: list[np.ndarray]) -> list[np.ndarray]:
    """Front end: wavs [S] -> frames [T, D] each, computed in pieces of one second."""
    config = runner.hubert.config
    if config.normalize:
        wavs = [standardize(wav) if len(wav) else wav for wav in wavs]
    padded = [np.pad(wav, config.padding) for wav in wavs]
    statistics = _statistics(runner, padded)
    hop = PIECE_FRAMES * config.hop
    # A frame depends on more samples than its hop.
    size = hop + config.receptive_field - config.hop

    def piece(i: int, number: int):
        return batching.cut(padded[i], number * hop, size), statistics[i]

    return batching.map_frames(
        runner, _project, [config.num_frames(len(wav)) for wav in wavs], piece
    )


def _statistics(runner: Runner, wavs: list[np.ndarray]) -> list[Any]:
    """Padded wavs [S] -> each one's statistics for the front end; None if it has no frame."""
    config = runner.hubert.config
    hop = PIECE_FRAMES * config.hop
    # A frame of the first layer depends on more samples than its hop.
    overlap = config.conv_kernel[0] - config.conv_stride[0]

    def piece(i: int, number: int):
        samples = wavs[i][number * hop :][: hop + overlap]
        frames = np.int32(config.first_frames(len(samples)))
        return batching.cut(samples, 0, hop + overlap), frames

    counts = [-(-max(len(wav) - overlap, 0) // hop) for wav in wavs]
    by_recording = batching.map_pieces(runner, _piece_statistics, counts, piece)
    return [
        runner.hubert.front_end.pool_statistics(*pieces) if count else None
        for count, pieces in zip(counts, by_recording)
    ]


def add_positions(runner: Runner, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Frames [T, D] each -> input of the Transformer's first layer [T, D] each."""
    before, after = runner.hubert.positions.context

    def piece(i: int, number: int):
        first = number * PIECE_FRAMES
        size = before + PIECE_FRAMES + after
        return batching.cut(frames[i], first - before, size), np.int32(first)

    return batching.map_frames(runner, _add_positions, [len(x) for x in frames], piece)


def transform(
    runner: Runner,
    frames: list[np.ndarray],
    centroids: np.ndarray | None,
    whole_seconds: float,
) -> list[np.ndarray]:
    """Transformer: frames [T, D] -> features [T, F], or cluster ids [T] of centroids [K, F].

    Recordings longer than `whole_seconds` are cut into windows.
    """
    config, whole_frames = runner.hubert.config, whole_seconds * FRAMES_PER_SECOND
    # Pairs (recording, window): packed several to a row, or each split into parallel parts.
    in_rows, in_parts = [], []
    for i, total in enumerate(map(len, frames)):
        if total > whole_frames:
            chosen = in_parts if config.reach == math.inf else in_rows
            chosen += [(i, window) for window in windows_of(total, config.reach)]
        elif total:
            in_rows.append((i, Window(0, total, 0, total)))

    empty = np.zeros((0, config.feature_size), np.float32)
    results = [[empty if centroids is None else np.zeros(0, np.int32)] for _ in frames]
    segments = [window.cut(frames[i]) for i, window in in_rows]
    for (i, window), y in zip(in_rows, _transform_rows(runner, segments, centroids)):
        results[i].append(window.kept(y))
    for i, window in in_parts:
        y = _transform_parts(runner, window.cut(frames[i]), centroids)
        results[i].append(window.kept(y))
    return [np.concatenate(windows) for windows in results]


def _transform_rows(
    runner: Runner, segments: list[np.ndarray], centroids: np.ndarray | None
) -> list[np.ndarray]:
    """Segments [T, D], packed several to a row -> features or cluster ids of each."""
    batches = batching.pack([len(x) for x in segments], runner.parallelism.rows)
    results = runner.map(_transform, lambda batch: (centroids, *batch.fill(segments)), batches)
    by_segment = dict(pair for batch, y in zip(batches, results) for pair in batch.split(y))
    return [by_segment[i] for i in range(len(segments))]


def _transform_parts(runner: Runner, x: np.ndarray, centroids: np.ndarray | None) -> np.ndarray:
    """Frames [T, D] that all attend to each other -> features or cluster ids.

    Each layer computes all parts in parallel; every part attends to the keys of all of them.
    """
    parts = batching.split_in_parts(x, runner.parallelism.num_workers)
    total = sum(part.shape[1] for part in parts)
    segments = (np.arange(total) < len(x)).astype(np.int32)[None]
    for layer in range(runner.hubert.config.feature_layer):
        parts = _transform_layer(runner, layer, parts, segments)
    y = runner.run(_to_features, centroids, np.concatenate(parts, axis=1), segments)
    return y[0, : len(x)]


def _transform_layer(
    runner: Runner, layer: int, parts: list[np.ndarray], segments: np.ndarray
) -> list[np.ndarray]:
    """Parts [1, T, D] of one recording -> output of a layer, parts [1, T, D]."""
    by_part = runner.map(_keys_values, lambda part: (part,), parts, layer)
    keys, values = (np.concatenate(arrays, axis=1) for arrays in zip(*by_part))
    return runner.map(_attend, lambda part: (part, (keys, values, segments)), parts, layer)


def programs(runner: Runner, seconds: int, whole_seconds: float) -> set[tuple[str, Any, bool]]:
    """Kind, shape and device of the programs for one recording of `seconds` seconds.

    Those for parts of long recordings, where frames attend to the whole recording, are left out.
    """
    size = batching.pieces_at_once(seconds, runner.parallelism.num_workers)
    found = {("pieces", size, runner.uses_single_cores(math.ceil(seconds / size)))}
    total, reach = seconds * FRAMES_PER_SECOND, runner.hubert.config.reach
    if seconds <= whole_seconds:
        sizes = [total]
    else:
        sizes = [] if reach == math.inf else [window.size for window in windows_of(total, reach)]
    batches = batching.pack(sizes, runner.parallelism.rows)
    is_single = runner.uses_single_cores(len(batches))
    return found | {("row", batch.shape, is_single) for batch in batches}


# ---- compiled functions --------------------------------------------------------------------------


def _piece_statistics(
    hubert: Hubert, wav: jax.Array, frames: jax.Array
) -> tuple[Statistics, jax.Array]:  # PS, P -> P..., P
    # The numbers of frames are the pieces' weights.
    return hubert.front_end.statistics(wav, frames), frames


def _project(
    hubert: Hubert, wav: jax.Array, statistics: Statistics
) -> jax.Array:  # PS, P... -> PTD
    return hubert.front_end(wav, statistics)


def _add_positions(hubert: Hubert, x: jax.Array, first: jax.Array) -> jax.Array:
    # P(before + T + after)D, P -> PTD
    return hubert.add_positions(x, first)


def _transform(
    hubert: Hubert, centroids: jax.Array | None, x: jax.Array, segments: jax.Array
) -> jax.Array:  # KF, BTD, BT -> BTF or BT
    features = hubert.transform(x, segments, hubert.config.feature_layer)
    return _cluster(features, centroids)


def _keys_values(layer: EncoderLayer, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # BTD -> BTNH, BTNH
    return layer.keys_values(x)


def _attend(layer: EncoderLayer, x: jax.Array, attended: KeysValues) -> jax.Array:  # BTD -> BTD
    return layer(x, jnp.ones(x.shape[:2], jnp.int32), attended)


def _to_features(
    hubert: Hubert, centroids: jax.Array | None, x: jax.Array, segments: jax.Array
) -> jax.Array:  # KF, BTD, BT -> BTF or BT
    return _cluster(hubert.to_features(x, segments), centroids)


def _cluster(features: jax.Array, centroids: jax.Array | None) -> jax.Array:
    # Part of the same program, so that an accelerator returns ids only.
    return features if centroids is None else kmeans.assign(features, centroids)
