"""Prepares HuBERT's training data: clips and, frame by frame, what a teacher hears in them.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets --hours=3
    ... --people=FOLDER      # recordings of people besides, G.722 as in Debian's asterisk sounds
    ... --teacher=mfcc --num_clusters=100     # cluster ids, for masked prediction

The teacher is `whisper` (features of Whisper tiny.en's encoder), `mfcc` (HuBERT's own first
iteration) or the folder of a HuBERT (its next iteration). More than half of the clips are resampled
by up to a quarter first, pitch, formants and speed together, so that the student hears more voices
than were recorded; the teacher hears the same resampled sound. What people say needs no transcript
and may be in any language.

Output: `sound.npy` int16 [samples], `clip_ends.npy` [clips], `targets.npy` float16 [frames, size],
with --num_clusters int16 [frames], `target_ends.npy` [clips]: everything concatenated, ready to be
memory-mapped.
"""

import argparse
import pathlib

import numpy as np
import soxr
from rich.progress import track

from speechgpt_jax.gin_utils import one_line_errors
from speechgpt_jax.speech import kmeans
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.speech2unit import Speech2Unit, load_hubert
from tools.build_demo_corpus import G722_BYTES_PER_SECOND, decode_g722
from tools.manifest import read_manifest
from tools.whisper_features import WhisperFeatures

# Whisper's third block of four carries phones best from one voice to another.
TEACHERS = {"whisper": lambda: WhisperFeatures(blocks=3), "mfcc": lambda: mfcc_features}


def make_teacher(name: str):
    """A function of clips [S] that gives features [T, D] of each, 50 a second."""
    return TEACHERS[name]() if name in TEACHERS else Speech2Unit(load_hubert(name), None).features


def mfcc_features(wavs: list[np.ndarray]) -> list[np.ndarray]:
    """13 MFCCs with first and second differences, 50 a second: one [T, 39] array a clip."""
    return [mfcc(wav) for wav in wavs]


def resampled(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In two cases of three another voice, at most a quarter higher or lower."""
    if rng.random() < 0.35:
        return wav
    return soxr.resample(wav, SAMPLE_RATE, SAMPLE_RATE * np.exp(rng.uniform(-0.22, 0.22)))


def load_clips(paths: list[str], seconds: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Clips in random order until there are `seconds` of sound, most of them resampled."""
    clips, total = [], 0.0
    for path in rng.permutation(paths):
        clips.append(resampled(load_audio(path), rng))
        total += len(clips[-1]) / SAMPLE_RATE
        if total > seconds:
            break
    return clips


def load_people(folder: pathlib.Path, rng: np.random.Generator) -> list[np.ndarray]:
    """Each recording of half a second to 20 s below `folder`, as it is and as another voice."""
    files = sorted(folder.rglob("*.g722"))
    if not files:
        raise ValueError(f"No .g722 file below {folder}; unpack the packages there.")
    seconds = [path.stat().st_size / G722_BYTES_PER_SECOND for path in files]
    wavs = [decode_g722(path) for path, length in zip(files, seconds) if 0.5 <= length <= 20]
    return wavs + [resampled(wav, rng) for wav in wavs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--manifest", required=True, help="JSONL with `path` and `split` a row")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--teacher", default="whisper", help="whisper, mfcc or a HuBERT's folder")
    parser.add_argument("--num_clusters", type=int, help="the targets are ids of so many clusters")
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--people", type=pathlib.Path, help="folder of .g722 files to hear too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with one_line_errors():
        prepare(args)


def prepare(args) -> None:
    rng = np.random.default_rng(args.seed)
    paths = [row["path"] for row in read_manifest(args.manifest, "train")]
    clips = load_clips(paths, args.hours * 3600, rng)
    if args.people:
        clips += load_people(args.people, rng)
    clips.sort(key=len)

    teacher = make_teacher(args.teacher)
    batches = [clips[i : i + 16] for i in range(0, len(clips), 16)]
    features = []
    for batch in track(batches, description="teacher features"):
        features += [rows.astype(np.float16) for rows in teacher(batch)]
    targets = features
    if args.num_clusters:
        sample = np.concatenate([features[i] for i in rng.permutation(len(features))])[:200_000]
        sample = sample.astype(np.float32)
        centroids = kmeans.fit(sample, args.num_clusters, steps=40, seed=args.seed)
        targets = [
            np.asarray(kmeans.assign(rows.astype(np.float32), centroids), np.int16)
            for rows in track(features, description="cluster ids")
        ]

    args.output.mkdir(parents=True, exist_ok=True)
    sound = [(np.clip(clip, -1, 1) * 32767).astype(np.int16) for clip in clips]
    for name, arrays in (("sound", sound), ("targets", targets)):
        np.save(args.output / f"{name}.npy", np.concatenate(arrays))
    np.save(args.output / "clip_ends.npy", np.cumsum([len(clip) for clip in clips]))
    np.save(args.output / "target_ends.npy", np.cumsum([len(rows) for rows in targets]))
    hours = sum(map(len, clips)) / SAMPLE_RATE / 3600
    print(f"{len(clips)} clips, {hours:.2f} h -> {args.output}")


if __name__ == "__main__":
    main()
