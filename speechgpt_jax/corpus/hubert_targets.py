"""Training data of a HuBERT: clips, and for every frame a teacher's features or their cluster.

More than half of the clips are resampled by up to a quarter, which shifts pitch and formants and
changes the speed, so that the student meets more voices than were recorded. The teacher encodes the
same resampled clip.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np
import soxr
from rich.progress import track
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
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
# Share of the clips that are not resampled.
UNCHANGED_SHARE = 0.35
MAX_LOG_STRETCH = 0.22  # a factor of 0.8 to 1.25
# Lengths in seconds of the recordings in the folder --people that are used.
SHORTEST, LONGEST = 0.5, 20.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of the training data.

    Attributes:
      wav: float32 [S] at 16 kHz.
      row: the manifest's fields, None for recordings without transcript.
      stretch: length of `wav` divided by that of the recording.
    """

    wav: np.ndarray
    row: dict | None = None
    stretch: float = 1.0

    def phones(self, num_frames: int) -> list[str]:
        """The phone of each frame, by flite's own timing."""
        assert self.row is not None, "a recording without transcript has no phones"
        phones = flite_phones(self.row["text"], self.row["speaker"])
        return frame_phones([(phone, end * self.stretch) for phone, end in phones], num_frames)


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
      rows: of a manifest: `path`, and for `directions` also `text` and `speaker`.
      output: the folder.
      teacher: "whisper", "mfcc" or the folder of a HuBERT.
      hours: hours of the manifest's audio to use, counted after resampling.
      directions: size of the targets: the features are projected to that many discriminant
        directions of flite's phones.
      num_clusters: the targets are cluster ids of that many clusters.
      people: folder of .g722 recordings to add.
      seed: seed of the choice of clips, the resampling and the clusters.

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
        clips += load_people(people, rng)
    clips.sort(key=lambda clip: len(clip.wav))
    batches = [clips[i : i + 16] for i in range(0, len(clips), 16)]
    targets = []
    for batch in track(batches, description="teacher features"):
        targets += [x.astype(np.float16) for x in teach([clip.wav for clip in batch])]
    if directions:
        targets = project_to_directions(clips, targets, directions, rng)
    if num_clusters:
        targets = cluster(targets, num_clusters, seed, rng)
    save_targets(output, [clip.wav for clip in clips], targets)
    return len(clips), sum(len(clip.wav) for clip in clips) / SAMPLE_RATE / 3600


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


def resample_randomly(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """wav [S] at most a quarter slower or faster (65 % of the calls), or wav itself."""
    if rng.random() < UNCHANGED_SHARE:
        return wav
    stretch = np.exp(rng.uniform(-MAX_LOG_STRETCH, MAX_LOG_STRETCH))
    return soxr.resample(wav, SAMPLE_RATE, SAMPLE_RATE * stretch)


def load_clips(rows: list[dict], seconds: float, rng: np.random.Generator) -> list[Clip]:
    """Clips in random order until there are `seconds` of audio, most of them resampled."""
    clips, total = [], 0.0
    for i in rng.permutation(len(rows)):
        recorded = load_audio(rows[i]["path"])
        wav = resample_randomly(recorded, rng)
        clips.append(Clip(wav, rows[i], len(wav) / len(recorded)))
        total += len(wav) / SAMPLE_RATE
        if total > seconds:
            break
    return clips


def load_people(folder: str | os.PathLike, rng: np.random.Generator) -> list[Clip]:
    """Each .g722 recording of 0.5 to 20 s below `folder`, as it is and once more resampled."""
    paths = sorted(pathlib.Path(folder).rglob("*.g722"))
    if not paths:
        raise UserError(
            f"no .g722 file below {folder}; unpack Debian's asterisk-core-sounds-*-g722 there with"
            " `dpkg-deb -x`."
        )
    seconds = [path.stat().st_size / G722_BYTES_PER_SECOND for path in paths]
    wavs = [decode_g722(p) for p, length in zip(paths, seconds) if SHORTEST <= length <= LONGEST]
    return [Clip(wav) for wav in wavs + [resample_randomly(wav, rng) for wav in wavs]]


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
    transcribed = [i for i, clip in enumerate(clips) if clip.row]
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
