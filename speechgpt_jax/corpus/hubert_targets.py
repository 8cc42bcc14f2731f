"""Training data of a HuBERT: clips, and for every frame a teacher's features or their cluster.

The targets of a recording may be the features of a reference: another speaker's recording of the
same text, aligned in time. A student that learns them gives all speakers the reference's units.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np
from rich.progress import track

from speechgpt_jax import manifests
from speechgpt_jax.corpus.alignment import load_recording, warp
from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert
from speechgpt_jax.speech.encoder.targets import save_targets
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.phones import flite_phones, frame_phones

# Clips [S] -> features [T, D] of each, 50 frames per second.
Teacher = Callable[[list[np.ndarray]], list[np.ndarray]]

# Frames that are drawn to find clusters or discriminant directions.
SAMPLE_FRAMES = 200_000
# Directions are found in each frame joined with the frames this many before and after it.
CONTEXT = 2
# Shrinkage of the covariances towards a multiple of the identity; half or five times as much
# changes little.
SHRINKAGE = 0.02
# Recordings that the teacher encodes at a time.
TEACHER_BATCH = 16
# Lengths in seconds of the recordings in the folder --people that are used.
SHORTEST, LONGEST = 0.5, 20.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of the training data.

    Attributes:
      wav: float32 [S] at 16 kHz.
      row: the manifest's fields, None for recordings without transcript.
    """

    wav: np.ndarray
    row: dict | None = None

    @property
    def reference(self) -> str | None:
        """Path of the recording whose features are this clip's targets; None: its own."""
        return self.row.get("reference") if self.row else None

    def phones(self, num_frames: int) -> list[str]:
        """The phone of each frame, by flite's own timing."""
        assert self.row is not None, "a recording without transcript has no phones"
        return frame_phones(flite_phones(self.row["text"], self.row["speaker"]), num_frames)


def read_rows(manifest: str | os.PathLike) -> list[dict]:
    """The rows of split "train", with the full paths of recordings and references.

    Raises:
      UserError: a reference is no path, or see `manifests.read_manifest`.
    """
    rows = manifests.read_manifest(manifest, "train")
    manifests.check_fields([row for row in rows if "reference" in row], ("reference",))
    return [
        row | {"reference": manifests.resolve(row["reference"], manifest)}
        if "reference" in row
        else row
        for row in rows
    ]


def prepare(
    rows: list[dict],
    output: str | os.PathLike,
    *,
    teacher: str,
    hours: float,
    directions: int | None = None,
    num_clusters: int | None = None,
    people: str | os.PathLike | None = None,
    seed: int = 0,
) -> tuple[int, float]:
    """Writes a folder of clips and targets (`speech.encoder.targets`).

    Args:
      rows: of a manifest: `path`, for `directions` also `text` and `speaker`, and if wanted
        `reference`, the path of a recording of the same text by another speaker, whose features
        become this recording's targets.
      output: the folder.
      teacher: "whisper", "mfcc" or the folder of a HuBERT.
      hours: hours of the manifest's audio to use.
      directions: size of the targets: the features are projected to that many discriminant
        directions of flite's phones.
      num_clusters: the targets are cluster ids of that many clusters.
      people: folder of .g722 recordings to add.
      seed: seed of the choice of clips and the clusters.

    Returns:
      Number of clips, and their hours.

    Raises:
      UserError: an input is missing or can't be read.
    """
    if directions:
        _check_transcripts(rows)
    teach = make_teacher(teacher)
    rng = np.random.default_rng(seed)
    clips = load_clips(rows, hours * 3600, rng)
    if people:
        clips += load_people(people)
    references = sorted({clip.reference for clip in clips if clip.reference})
    all_wavs = [clip.wav for clip in clips] + [load_recording(path) for path in references]
    features = teach_all(all_wavs, teach)
    if directions:
        features = project_to_directions(clips, features, directions, rng)
    by_path = dict(zip(references, features[len(clips) :]))
    targets = [
        aligned(own, by_path[clip.reference]) if clip.reference else own
        for clip, own in zip(track(clips, description="alignment"), features)
    ]
    if num_clusters:
        targets = cluster(targets, num_clusters, seed, rng)
    save_targets(output, [clip.wav for clip in clips], targets)
    return len(clips), sum(len(clip.wav) for clip in clips) / SAMPLE_RATE / 3600


def teach_all(wavs: list[np.ndarray], teach: Teacher) -> list[np.ndarray]:
    """The teacher's features of all recordings, float16 [T, D] each."""
    features = [np.zeros(0)] * len(wavs)
    # Recordings of similar length share a batch.
    by_length = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
    starts = range(0, len(wavs), TEACHER_BATCH)
    for start in track(starts, description="teacher features"):
        batch = by_length[start : start + TEACHER_BATCH]
        for i, x in zip(batch, teach([wavs[i] for i in batch])):
            features[i] = x.astype(np.float16)
    return features


def aligned(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The reference's features [R, D], laid over the time of another recording [T, D] -> [T, D]."""
    places = warp(features.astype(np.float32), reference.astype(np.float32))
    return reference[places]


def _check_transcripts(rows: list[dict]) -> None:
    for row in rows:
        if not (isinstance(row.get("text"), str) and isinstance(row.get("speaker"), str)):
            raise UserError(
                f"--directions needs the `text` and the `speaker` (a voice of flite) of every row;"
                f" {row['path']} has {sorted(row)}."
            )


def make_teacher(name: str | os.PathLike) -> Teacher:
    """The teacher called "whisper" or "mfcc", or the HuBERT in a folder."""
    if name == "whisper":
        # The last two of its four blocks carry phones best from one speaker to another.
        return WhisperFeatures(3, 4)
    if name == "mfcc":
        return lambda wavs: [mfcc(wav) for wav in wavs]
    return Speech2Unit(for_inference(load_hubert(name)), None).features


def load_clips(rows: list[dict], seconds: float, rng: np.random.Generator) -> list[Clip]:
    """Clips in random order until there are `seconds` of audio.

    Raises:
      UserError: one is shorter than a frame.
    """
    clips, total = [], 0.0
    for i in rng.permutation(len(rows)):
        clips.append(Clip(load_recording(rows[i]["path"]), rows[i]))
        total += len(clips[-1].wav) / SAMPLE_RATE
        if total > seconds:
            break
    return clips


def load_people(folder: str | os.PathLike) -> list[Clip]:
    """The .g722 recordings of 0.5 to 20 s below `folder`."""
    paths = sorted(pathlib.Path(folder).rglob("*.g722"))
    if not paths:
        raise UserError(
            f"no .g722 file below {folder}; unpack Debian's asterisk-core-sounds-*-g722 there with"
            " `dpkg-deb -x`."
        )
    seconds = [path.stat().st_size / G722_BYTES_PER_SECOND for path in paths]
    return [
        Clip(decode_g722(p)) for p, length in zip(paths, seconds) if SHORTEST <= length <= LONGEST
    ]


def phone_directions(
    features: list[np.ndarray], phones: list[list[str]], count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A projection [..., D] -> [..., count] to the directions in which phones differ most.

    Linear discriminant analysis (Fisher 1936): within a phone the projected features have unit
    covariance.

    Args:
      features: [T, D] of each clip.
      phones: the phone of each of these frames.
      count: number of directions, fewer than there are phones.

    Raises:
      UserError: there are fewer directions than `count`.
    """
    x, names = np.concatenate(features), np.concatenate(phones)
    most = min(len(set(names)) - 1, x.shape[1])
    if count > most:
        raise UserError(
            f"--directions={count} is too large; features and phones of these clips have at most"
            f" {most}."
        )
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # Imports for seconds.

    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    directions = analysis.fit(x, names).scalings_[:, :count].astype(np.float32)
    offset = x.mean(0) @ directions
    return lambda x: x @ directions - offset


def with_context(features: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, 3 D]: frame t - CONTEXT, frame t, frame t + CONTEXT."""
    padded = np.pad(features, ((CONTEXT, CONTEXT), (0, 0)), "edge")
    starts = range(0, 2 * CONTEXT + 1, CONTEXT)
    return np.concatenate([padded[i : i + len(features)] for i in starts], axis=1)


def project_to_directions(
    clips: list[Clip], features: list[np.ndarray], count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Features [T, D] of each clip -> float16 [T, count]."""
    sampled, names, frames = [], [], 0
    transcribed = [i for i, clip in enumerate(clips) if clip.row and not clip.reference]
    if not transcribed:
        raise UserError(
            "--directions needs recordings without a reference, whose phones are known; none of"
            " those drawn from the manifest is one."
        )
    for i in track(rng.permutation(transcribed), description="phones"):
        sampled.append(with_context(features[i].astype(np.float32)))
        names.append(clips[i].phones(len(sampled[-1])))
        frames += len(sampled[-1])
        if frames > SAMPLE_FRAMES:
            break
    project = phone_directions(sampled, names, count)
    return [project(with_context(rows.astype(np.float32))).astype(np.float16) for rows in features]


def cluster(
    features: list[np.ndarray], count: int, seed: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Features [T, D] of each clip -> cluster ids int16 [T]."""
    shuffled = [features[i] for i in rng.permutation(len(features))]
    sample = np.concatenate(shuffled)[:SAMPLE_FRAMES].astype(np.float32)
    centroids = kmeans.fit(sample, count, steps=40, seed=seed)
    return [
        np.asarray(kmeans.assign(rows.astype(np.float32), centroids), np.int16)
        for rows in track(features, description="cluster ids")
    ]
