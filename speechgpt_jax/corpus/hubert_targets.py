"""Training data of a HuBERT: clips, and for every frame a teacher's features or their cluster.

The targets of a recording may be the features of a reference: another speaker's recording of the
same text, aligned in time. A student that learns them gives all speakers the reference's units.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from rich.progress import track

from speechgpt_jax.corpus.alignment import warp
from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import files_below
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans, whisper
from speechgpt_jax.speech.encoder.float16 import to_float16
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert
from speechgpt_jax.speech.encoder.targets import save_targets
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.recordings import load_recording, num_frames

# Clips [S] -> features [T, D] of each, 50 frames per second.
Teacher = Callable[[list[np.ndarray]], list[np.ndarray]]

# Frames that are drawn to find clusters.
SAMPLE_FRAMES = 200_000
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
        return self.row.get("reference") or None if self.row else None


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
      rows: rows of a manifest: `path`, for `directions` also `text` and `speaker`, and if wanted
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
      UserError: an input is missing or can't be read, a recording is too long for the teacher, or
        there are fewer frames than clusters; raised before the teacher encodes anything. Or its
        features are too large for float16.
    """
    if directions:
        # Imported here: it takes seconds, and other targets do without scikit-learn.
        from speechgpt_jax.corpus import phone_directions

        phone_directions.check_rows(rows)
    teach = make_teacher(teacher)
    rng = np.random.default_rng(seed)
    longest = whisper.MAX_SECONDS if teacher == "whisper" else None
    clips = load_clips(rows, hours * 3600, rng, longest)
    if people:
        clips += load_people(people)
    if num_clusters:
        frames = sum(num_frames(len(clip.wav)) for clip in clips)
        kmeans.check_enough(min(frames, SAMPLE_FRAMES), num_clusters)
    references = sorted({clip.reference for clip in clips if clip.reference})
    all_wavs = [clip.wav for clip in clips] + [load_recording(p, longest) for p in references]
    if directions:
        phones = phone_directions.sample_phones(
            [clip.row for clip in clips], all_wavs, directions, rng
        )
    features = teach_all(all_wavs, teach, teacher)
    if directions:
        features = phone_directions.project(features, phones, directions)
    by_path = dict(zip(references, features[len(clips) :]))
    targets = [
        aligned(own, by_path[clip.reference]) if clip.reference else own
        for clip, own in zip(track(clips, description="alignment"), features)
    ]
    if num_clusters:
        targets = cluster(targets, num_clusters, seed, rng)
    save_targets(output, [clip.wav for clip in clips], targets)
    return len(clips), sum(len(clip.wav) for clip in clips) / SAMPLE_RATE / 3600


def teach_all(wavs: list[np.ndarray], teach: Teacher, name: str | os.PathLike) -> list[np.ndarray]:
    """The features of all recordings by the teacher called `name`, float16 [T, D] each.

    Raises:
      UserError: they are not finite, or too large for float16.
    """
    features = [np.zeros(0)] * len(wavs)
    # Recordings of similar length share a batch.
    by_length = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
    starts = range(0, len(wavs), TEACHER_BATCH)
    for start in track(starts, description="teacher features"):
        batch = by_length[start : start + TEACHER_BATCH]
        for i, x in zip(batch, teach([wavs[i] for i in batch])):
            features[i] = to_float16(x, name)
    return features


def aligned(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The reference's features [R, D], laid over the time of another recording [T, D] -> [T, D]."""
    places = warp(features.astype(np.float32), reference.astype(np.float32))
    return reference[places]


def make_teacher(name: str | os.PathLike) -> Teacher:
    """The teacher called "whisper" or "mfcc", or the HuBERT in a folder."""
    if name == "whisper":
        # The last two of its four blocks carry phones best from one speaker to another.
        return whisper.WhisperFeatures(3, 4)
    if name == "mfcc":
        return lambda wavs: [mfcc(wav) for wav in wavs]
    return Speech2Unit(for_inference(load_hubert(name)), None).features


def load_clips(
    rows: list[dict], seconds: float, rng: np.random.Generator, longest: float | None
) -> list[Clip]:
    """Clips in random order until there are `seconds` of audio.

    Raises:
      UserError: one is shorter than a frame, or longer than `longest` seconds.
    """
    clips, total = [], 0.0
    for i in rng.permutation(len(rows)):
        clips.append(Clip(load_recording(rows[i]["path"], longest), rows[i]))
        total += len(clips[-1].wav) / SAMPLE_RATE
        if total > seconds:
            break
    return clips


def load_people(folder: str | os.PathLike) -> list[Clip]:
    """The .g722 recordings of 0.5 to 20 s below `folder`."""
    paths = [path for path in files_below(folder) if path.suffix == ".g722"]
    if not paths:
        raise UserError(
            f"no .g722 file below {folder}; unpack Debian's asterisk-core-sounds-*-g722 there with"
            " `dpkg-deb -x`."
        )
    seconds = [path.stat().length / G722_BYTES_PER_SECOND for path in paths]
    return [
        Clip(decode_g722(p)) for p, length in zip(paths, seconds) if SHORTEST <= length <= LONGEST
    ]


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
