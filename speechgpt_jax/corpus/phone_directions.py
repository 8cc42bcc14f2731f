"""Directions of a teacher's features in which phones differ most, and speakers little.

Found by linear discriminant analysis (Fisher 1936) over recordings of flite, whose phones and their
times are known.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.progress import track
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from speechgpt_jax import manifests
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.phones import Phones, flite_phones, frame_phones
from speechgpt_jax.speech.recordings import num_frames

# Frames from which the directions are found.
SAMPLE_FRAMES = 200_000
# Directions are found in each frame joined with the frames this many before and after it. The
# student's projection reads the same frames: HubertConfig.projection_reach. They differ only at the
# ends of a recording, where the last frame is repeated here and the frame itself there.
CONTEXT = 2
# Shrinkage of the covariances towards a multiple of the identity; half or five times as much
# changes little.
SHRINKAGE = 0.02


def has_phones(row: Mapping | None) -> bool:
    """Whether flite's phones are those of a row's recording: flite made it, and it wasn't changed.

    `row` is None for recordings without transcript.
    """
    return row is not None and not row.get("reference") and not manifests.is_perturbed(row)


def check_rows(rows: Sequence[Mapping]) -> None:
    """Raises a UserError unless flite knows the phones of some rows; to be called first."""
    spoken = [row for row in rows if has_phones(row)]
    if not spoken:
        raise UserError(
            "--directions needs recordings by flite without a reference, whose phones are known;"
            " the manifest has none."
        )
    manifests.check_fields(spoken, ("text", "speaker"))
    for voice in sorted({row["speaker"] for row in spoken}):
        flite_phones("yes", voice)


def sample_phones(
    rows: Sequence[Mapping | None],
    wavs: Sequence[np.ndarray],
    count: int,
    rng: np.random.Generator,
) -> dict[int, Phones]:
    """Phones of randomly chosen recordings, SAMPLE_FRAMES frames together, by their index.

    Args:
      rows: rows of the recordings in the manifest.
      wavs: [S] of each.
      count: number of directions that are to be found.
      rng: makes the choice.

    Raises:
      UserError: none of the recordings has phones, or there are too few for `count` directions.
    """
    found: dict[int, Phones] = {}
    frames = 0
    spoken = [i for i, row in enumerate(rows) if has_phones(row)]
    for i in track(rng.permutation(spoken), description="phones") if spoken else ():
        row = rows[i]
        found[int(i)] = flite_phones(row["text"], row["speaker"])
        frames += num_frames(len(wavs[i]))
        if frames > SAMPLE_FRAMES:
            break
    if not found:
        raise UserError(
            "--directions needs recordings without a reference, whose phones are known; none of"
            " those drawn from the manifest is one."
        )
    _check_count(count, len({name for phones in found.values() for name, _ in phones}) - 1)
    return found


def project(
    features: Sequence[np.ndarray], phones: Mapping[int, Phones], count: int
) -> list[np.ndarray]:
    """Features [T, D] of each recording -> float16 [T, count].

    Args:
      features: features of all recordings.
      phones: phones of some of them, by their index.
      count: number of directions.
    """
    sampled = [with_context(features[i].astype(np.float32)) for i in phones]
    names = [frame_phones(found, len(x)) for found, x in zip(phones.values(), sampled)]
    to_directions = phone_directions(sampled, names, count)
    return [
        to_directions(with_context(rows.astype(np.float32))).astype(np.float16) for rows in features
    ]


def phone_directions(
    features: list[np.ndarray], phones: list[list[str]], count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A projection [..., D] -> [..., count] to the directions in which phones differ most.

    Within a phone the projected features have unit covariance.

    Args:
      features: [T, D] of each clip.
      phones: the phone of each of these frames.
      count: number of directions, fewer than there are phones.

    Raises:
      UserError: there are fewer directions than `count`.
    """
    x, names = np.concatenate(features), np.concatenate(phones)
    _check_count(count, min(len(set(names)) - 1, x.shape[1]))
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    directions = analysis.fit(x, names).scalings_[:, :count].astype(np.float32)
    offset = x.mean(0) @ directions
    return lambda x: x @ directions - offset


def with_context(features: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, 3 D]: frame t - CONTEXT, frame t, frame t + CONTEXT."""
    padded = np.pad(features, ((CONTEXT, CONTEXT), (0, 0)), "edge")
    starts = range(0, 2 * CONTEXT + 1, CONTEXT)
    return np.concatenate([padded[i : i + len(features)] for i in starts], axis=1)


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise UserError(
            f"--directions={count} is too large; features and phones of these clips have at most"
            f" {most}."
        )
