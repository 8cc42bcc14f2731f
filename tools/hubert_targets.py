"""Prepares HuBERT's training data: clips and, frame by frame, what a teacher hears in them.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets --directions=37
    ... --people=FOLDER      # recordings of people besides, G.722 as in Debian's asterisk sounds
    ... --teacher=mfcc --num_clusters=100     # cluster ids, for masked prediction

The teacher is `whisper` (features of Whisper tiny.en's encoder), `mfcc` (HuBERT's own first
iteration) or the folder of a HuBERT (its next iteration). More than half of the clips are resampled
by up to a quarter first, pitch, formants and speed together, so that the student hears more voices
than were recorded; the teacher hears the same resampled sound. What people say needs no transcript
and may be in any language.

With --directions the targets are those directions of the features in which flite's phones differ
most, measured by how much one phone differs from itself (linear discriminant analysis, Fisher
1936): what is said, less of who says it. Rows then need a `text` and a `speaker`
that is a voice of flite, which must be installed.

Output: `sound.npy` int16 [samples], `clip_ends.npy` [clips], `targets.npy` float16 [frames, size],
with --num_clusters int16 [frames], `target_ends.npy` [clips]: everything concatenated, ready to be
memory-mapped.
"""

import argparse
import dataclasses
import pathlib

import numpy as np
import soxr
from rich.progress import track
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.corpus.manifest import read_manifest
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.phones import flite_phones, frame_phones

# Whisper's last two blocks of four carry phones best from one voice to another.
TEACHERS = {"whisper": lambda: WhisperFeatures(3, 4), "mfcc": lambda: mfcc_features}
# What is drawn of all frames to find clusters or directions.
SAMPLE = 200_000
# Directions are of frames two before, of the frame itself and of two after.
CONTEXT = 2
# Of covariances towards a multiple of the identity; half or five times as much changes little.
SHRINKAGE = 0.02


def make_teacher(name: str):
    """A function of clips [S] that gives features [T, D] of each, 50 a second."""
    if name in TEACHERS:
        return TEACHERS[name]()
    return Speech2Unit(for_inference(load_hubert(name)), None).features


def mfcc_features(wavs: list[np.ndarray]) -> list[np.ndarray]:
    """13 MFCCs with first and second differences, 50 a second: one [T, 39] array a clip."""
    return [mfcc(wav) for wav in wavs]


def resampled(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In two cases of three another voice, at most a quarter higher or lower."""
    if rng.random() < 0.35:
        return wav
    return soxr.resample(wav, SAMPLE_RATE, SAMPLE_RATE * np.exp(rng.uniform(-0.22, 0.22)))


@dataclasses.dataclass(frozen=True)
class Clip:
    """Sound [S], and of a manifest's clips the row and how many times as long it was made."""

    wav: np.ndarray
    row: dict | None = None
    stretch: float = 1.0

    def phones(self, num_frames: int) -> list[str]:
        """What flite says in each frame."""
        phones = flite_phones(self.row["text"], self.row["speaker"])
        return frame_phones([(phone, end * self.stretch) for phone, end in phones], num_frames)


def load_clips(rows: list[dict], seconds: float, rng: np.random.Generator) -> list[Clip]:
    """Clips in random order until there are `seconds` of sound, most of them resampled."""
    clips, total = [], 0.0
    for i in rng.permutation(len(rows)):
        recorded = load_audio(rows[i]["path"])
        wav = resampled(recorded, rng)
        clips.append(Clip(wav, rows[i], len(wav) / len(recorded)))
        total += len(wav) / SAMPLE_RATE
        if total > seconds:
            break
    return clips


def load_people(folder: pathlib.Path, rng: np.random.Generator) -> list[Clip]:
    """Each recording of half a second to 20 s below `folder`, as it is and as another voice."""
    files = sorted(folder.rglob("*.g722"))
    if not files:
        raise UserError(f"No .g722 file below {folder}; unpack the packages there.")
    seconds = [path.stat().st_size / G722_BYTES_PER_SECOND for path in files]
    wavs = [decode_g722(path) for path, length in zip(files, seconds) if 0.5 <= length <= 20]
    return [Clip(wav) for wav in wavs + [resampled(wav, rng) for wav in wavs]]


def phone_directions(features: list[np.ndarray], phones: list[list[str]], count: int):
    """Features [T, D] and names [T] of each clip -> what takes [..., D] to [..., count].

    In the directions found, features of one name have unit covariance.
    """
    x = np.concatenate(features)
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    directions = analysis.fit(x, np.concatenate(phones)).scalings_[:, :count].astype(np.float32)
    offset = x.mean(0) @ directions
    return lambda x: x @ directions - offset


def with_context(features: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, 3 D]: each frame between those CONTEXT before and after it."""
    padded = np.pad(features, ((CONTEXT, CONTEXT), (0, 0)), "edge")
    starts = range(0, 2 * CONTEXT + 1, CONTEXT)
    return np.concatenate([padded[i : i + len(features)] for i in starts], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--manifest", required=True, help="JSONL with `path` and `split` a row")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--teacher", default="whisper", help="whisper, mfcc or a HuBERT's folder")
    parser.add_argument("--directions", type=int, help="the targets are so many, that tell phones")
    parser.add_argument("--num_clusters", type=int, help="the targets are ids of so many clusters")
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--people", type=pathlib.Path, help="folder of .g722 files to hear too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with one_line_errors():
        prepare(args)


def prepare(args) -> None:
    rng = np.random.default_rng(args.seed)
    clips = load_clips(read_manifest(args.manifest, "train"), args.hours * 3600, rng)
    if args.people:
        clips += load_people(args.people, rng)
    clips.sort(key=lambda clip: len(clip.wav))

    teacher = make_teacher(args.teacher)
    batches = [clips[i : i + 16] for i in range(0, len(clips), 16)]
    targets = []
    for batch in track(batches, description="teacher features"):
        targets += [rows.astype(np.float16) for rows in teacher([clip.wav for clip in batch])]
    if args.directions:
        targets = in_directions(clips, targets, args.directions, rng)
    if args.num_clusters:
        targets = clusters(targets, args.num_clusters, args.seed, rng)
    write(clips, targets, args.output)


def in_directions(clips: list[Clip], features: list[np.ndarray], count: int, rng):
    """Features [T, D] of each clip -> float16 [T, count]."""
    said, names, frames = [], [], 0
    spoken = [i for i, clip in enumerate(clips) if clip.row]
    for i in track(rng.permutation(spoken), description="phones"):
        said.append(with_context(features[i].astype(np.float32)))
        names.append(clips[i].phones(len(said[-1])))
        frames += len(said[-1])
        if frames > SAMPLE:
            break
    project = phone_directions(said, names, count)
    return [project(with_context(rows.astype(np.float32))).astype(np.float16) for rows in features]


def clusters(features: list[np.ndarray], count: int, seed: int, rng) -> list[np.ndarray]:
    """Features [T, D] of each clip -> int16 [T]."""
    sample = np.concatenate([features[i] for i in rng.permutation(len(features))])[:SAMPLE]
    centroids = kmeans.fit(sample.astype(np.float32), count, steps=40, seed=seed)
    return [
        np.asarray(kmeans.assign(rows.astype(np.float32), centroids), np.int16)
        for rows in track(features, description="cluster ids")
    ]


def write(clips: list[Clip], targets: list[np.ndarray], output: pathlib.Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    sound = [(np.clip(clip.wav, -1, 1) * 32767).astype(np.int16) for clip in clips]
    for name, arrays in (("sound", sound), ("targets", targets)):
        np.save(output / f"{name}.npy", np.concatenate(arrays))
    np.save(output / "clip_ends.npy", np.cumsum([len(clip.wav) for clip in clips]))
    np.save(output / "target_ends.npy", np.cumsum([len(rows) for rows in targets]))
    hours = sum(len(clip.wav) for clip in clips) / SAMPLE_RATE / 3600
    print(f"{len(clips)} clips, {hours:.2f} h -> {output}")


if __name__ == "__main__":
    main()
