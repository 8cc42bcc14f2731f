"""Fits the centroids that turn HuBERT features into units, and puts them beside the model.

    python -m tools.train_kmeans --hubert=FOLDER --manifest=corpus/manifest.jsonl --num_clusters=200

Writes FOLDER/kmeans.safetensors (`cluster_centers` [K, D] float32).
"""

import argparse
import pathlib

import numpy as np
import safetensors.numpy
from rich.progress import track

from speechgpt_jax.speech import kmeans, pretrained
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.speech2unit import Speech2Unit, load_hubert
from tools.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hubert", required=True, type=pathlib.Path)
    parser.add_argument("--manifest", required=True, help="JSONL with `path` and `split` a row")
    parser.add_argument("--num_clusters", type=int, default=200)
    parser.add_argument("--clips", type=int, default=2500, help="drawn from the train split")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    paths = rng.permutation([row["path"] for row in read_manifest(args.manifest, "train")])
    speech2unit = Speech2Unit(load_hubert(args.hubert), np.zeros((0, 0)))
    wavs = sorted(map(load_audio, paths[: args.clips]), key=len)
    features = []
    for i in track(range(0, len(wavs), 16), description="features"):
        features += speech2unit.features(wavs[i : i + 16])
    features = np.concatenate(features)
    features = features[rng.permutation(len(features))[:250_000]]
    centroids = kmeans.fit(features, args.num_clusters, steps=args.steps, seed=args.seed)
    tensors = safetensors.numpy.save({"cluster_centers": centroids})
    pretrained.write_whole(args.hubert / "kmeans.safetensors", tensors)
    inertia = float(
        np.square(features - centroids[kmeans.assign(features, centroids)]).sum(-1).mean()
    )
    print(f"{args.num_clusters} clusters of {len(features)} frames, inertia {inertia:.3f}")


if __name__ == "__main__":
    main()
