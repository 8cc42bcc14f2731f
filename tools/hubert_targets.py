"""Prepares HuBERT's training data: clips, and a teacher's features of every frame.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets --directions=37
    ... --people=FOLDER      # adds recordings of people, G.722 as in Debian's asterisk sounds
    ... --teacher=mfcc --num_clusters=100     # cluster ids, for masked prediction

The teacher is `whisper` (features of Whisper tiny.en's encoder), `mfcc` (HuBERT's first iteration)
or the folder of a HuBERT (the next iteration). Recordings of --people need no transcript and may be
in any language.

A row may have a `reference`: the path of another speaker's recording of the same text. Its targets
are then the reference's features, aligned in time, so that the student learns to give both speakers
the same units. tools.record_voices writes such rows.

With --directions the features are projected to the directions in which flite's phones differ most,
relative to the variance within a phone (linear discriminant analysis, Fisher 1936): the phones are
kept, and less of the speaker. Rows then need a `text` and a `speaker` that is a voice of flite,
which must be installed.

Output: `sound.npy` int16 [samples], `clip_ends.npy` [clips], `targets.npy` float16 [frames, D] or,
with --num_clusters, int16 [frames], and `target_ends.npy` [clips], all to be memory-mapped: the
clips one after the other.
"""

from speechgpt_jax import arguments, manifests
from speechgpt_jax.arguments import (
    at_least,
    existing_file,
    existing_folder,
    output_folder,
    positive_float,
    positive_int,
    seed,
)


def teacher(text: str) -> str:
    """Type of --teacher: one of the two names, or a folder."""
    return text if text in ("whisper", "mfcc") else existing_folder(text)


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--manifest", required=True, type=existing_file, help="rows with `path` and `split`"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder,
        metavar="FOLDER",
        help="gets sound, targets and their ends",
    )
    parser.add_argument(
        "--teacher", type=teacher, default="whisper", help="whisper, mfcc or a HuBERT's folder"
    )
    parser.add_argument(
        "--directions", type=positive_int, help="project the features to this many directions"
    )
    parser.add_argument(
        "--num_clusters",
        type=at_least(1, at_most=2**15),
        help="write cluster ids instead of features, of this many clusters",
    )
    parser.add_argument(
        "--hours", type=positive_float, default=4.0, help="hours of the manifest to use"
    )
    parser.add_argument(
        "--people", type=existing_folder, help="folder of .g722 files, added to the clips"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random numbers")
    args = parser.parse_args(argv)
    # Imported now that the arguments are right: it takes seconds.
    from speechgpt_jax.corpus import hubert_targets

    clips, hours = hubert_targets.prepare(
        manifests.read_manifest(args.manifest, "train"),
        args.output,
        teacher=args.teacher,
        hours=args.hours,
        directions=args.directions,
        num_clusters=args.num_clusters,
        people=args.people,
        seed=args.seed,
    )
    print(f"{clips} clips, {hours:.2f} h -> {args.output}")


if __name__ == "__main__":
    arguments.run(main)
