"""Fits the centroids that turn HuBERT features into units, and puts them beside the HuBERT.

    python -m tools.train_kmeans --hubert=FOLDER --manifest=corpus/manifest.jsonl --num_clusters=200
    ... --clips=1000000 --batch_frames=100000 --steps=2000      # any amount of audio, flat memory

Features are kept in files, so memory does not grow with the audio; those on gs:// are copied to the
folder for temporary files (TMPDIR) while they are used. Without --batch_frames every
step uses all frames (Lloyd's algorithm); with it, each step draws that many (mini-batch k-means),
split over all devices. An interrupted run resumes when the same command is given again; for other
settings than a larger --steps give another --work_dir. Writes FOLDER/kmeans.safetensors
(`cluster_centers` [K, D] float32), which must not exist.
"""

from speechgpt_jax import arguments, files, manifests
from speechgpt_jax.arguments import existing_file, existing_folder, positive_int, seed


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--hubert", required=True, type=existing_folder, metavar="FOLDER", help="gets the centroids"
    )
    parser.add_argument(
        "--manifest", required=True, type=existing_file, help="rows with `path` and `split`"
    )
    parser.add_argument("--num_clusters", type=positive_int, default=200, help="units")
    parser.add_argument(
        "--clips", type=positive_int, default=2500, help="clips drawn from the train split"
    )
    parser.add_argument("--steps", type=positive_int, default=60, help="updates of the centroids")
    parser.add_argument(
        "--batch_frames", type=positive_int, help="frames drawn for each step; default: all"
    )
    parser.add_argument(
        "--tries", type=positive_int, default=1, help="initialisations; the best one is taken"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random numbers")
    parser.add_argument(
        "--work_dir",
        type=arguments.output_folder,
        help="folder of features and checkpoints; default: FOLDER/kmeans",
    )
    args = parser.parse_args(argv)
    work_dir = args.work_dir or f"{args.hubert}/kmeans"
    # Imported now that the arguments are right: it takes seconds.
    from speechgpt_jax.gin_utils import hush_libraries
    from speechgpt_jax.malloc import keep_freed_memory
    from speechgpt_jax.speech.encoder.speech2unit import save_centroids
    from speechgpt_jax.training import train_kmeans

    files.refuse_existing(args.hubert, "kmeans.safetensors")
    keep_freed_memory()
    hush_libraries()
    rows = manifests.read_manifest(args.manifest, "train")
    paths = train_kmeans.choose_recordings(rows, args.clips, args.seed)
    centroids = train_kmeans.train(
        train_kmeans.extract_features(args.hubert, paths, work_dir),
        work_dir,
        num_clusters=args.num_clusters,
        steps=args.steps,
        batch_frames=args.batch_frames,
        tries=args.tries,
        seed=args.seed,
    )
    save_centroids(args.hubert, centroids)
    print(f"{len(centroids)} centroids are in {args.hubert}/kmeans.safetensors.")


if __name__ == "__main__":
    arguments.run(main)
