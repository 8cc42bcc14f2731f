"""Fits the centroids that turn HuBERT features into units, and puts them beside the model.

    python -m tools.train_kmeans --hubert=FOLDER --manifest=corpus/manifest.jsonl --num_clusters=200
    ... --clips=1000000 --batch_frames=100000 --steps=2000      # any amount of sound, flat memory

Features are kept in files, so memory does not grow with the sound. Without --batch_frames every
step sees all of them (Lloyd); with it, each step draws so many (mini-batch k-means), cut over all
devices. Interrupted, the same command goes on where it was. Writes FOLDER/kmeans.safetensors
(`cluster_centers` [K, D] float32).
"""

import argparse
import functools
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.progress import track

from speechgpt_jax import sharding
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.corpus.manifest import read_manifest
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.files import write_bytes
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert, save_centroids
from speechgpt_jax.training.loop import fit

CLIPS_A_FILE, INIT_FRAMES = 512, 50_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hubert", required=True, type=pathlib.Path)
    parser.add_argument("--manifest", required=True, help="JSONL with `path` and `split` a row")
    parser.add_argument("--num_clusters", type=int, default=200)
    parser.add_argument("--clips", type=int, default=2500, help="drawn from the train split")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_frames", type=int, help="drawn for each step; default: all")
    parser.add_argument("--tries", type=int, default=1, help="starts, of which the best is taken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=pathlib.Path, help="default: FOLDER/kmeans")
    args = parser.parse_args()
    with one_line_errors():
        keep_freed_memory()
        work_dir = args.work_dir or args.hubert / "kmeans"
        rows = read_manifest(args.manifest, "train")
        paths = np.random.default_rng(args.seed).permutation([row["path"] for row in rows])
        features = extract(args.hubert, paths[: args.clips], work_dir)
        centroids = train(
            features,
            work_dir,
            num_clusters=args.num_clusters,
            steps=args.steps,
            batch_frames=args.batch_frames,
            tries=args.tries,
            seed=args.seed,
        )
        save_centroids(args.hubert, centroids)
        print(f"{len(centroids)} centroids are in {args.hubert / 'kmeans.safetensors'}.")


def extract(hubert: pathlib.Path, paths: list[str], work_dir: pathlib.Path) -> list[np.ndarray]:
    """Features of all clips, float16 [M, D] a file, memory-mapped; finished files are kept."""
    speech2unit = Speech2Unit(for_inference(load_hubert(hubert)), None)
    files = []
    for number in track(range(-(-len(paths) // CLIPS_A_FILE)), description="features"):
        files.append(work_dir / f"features-{number:05d}.npy")
        if files[-1].is_file():
            continue
        clips = paths[number * CLIPS_A_FILE :][:CLIPS_A_FILE]
        rows = speech2unit.features([*map(load_audio, clips)])
        data = io.BytesIO()
        np.save(data, np.concatenate(rows).astype(np.float16))
        write_bytes(files[-1], data.getvalue())
    return [np.load(file, mmap_mode="r") for file in files]


def train(
    features: list[np.ndarray],
    work_dir: pathlib.Path,
    *,
    num_clusters: int,
    steps: int,
    batch_frames: int | None,
    tries: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Arrays of features [M, D] -> centroids [K, D]; goes on where it was."""
    mesh = sharding.create_mesh(MeshConfig())
    total = sum(map(len, features))
    frames = min(batch_frames or total, total) // mesh.size * mesh.size
    sample = next(kmeans.FeatureBatches(features, INIT_FRAMES, seed=seed))["features"]
    clusters = kmeans.init_clusters(sample, num_clusters, seed=seed, tries=tries)
    # All features at once need no memory of the steps before.
    memory = 1.0 if frames < total // mesh.size * mesh.size else 0.0

    def train_step(clusters, batch):
        clusters, inertia = kmeans.update(clusters, batch["features"], memory=memory)
        return clusters, {"inertia": inertia, "frames": jnp.float32(len(batch["features"]))}

    clusters = fit(
        jax.device_put(clusters, NamedSharding(mesh, PartitionSpec())),
        jax.jit(train_step, donate_argnums=0),
        kmeans.FeatureBatches(features, frames, seed=seed + 1),
        steps=steps,
        checkpoints=Checkpoints(work_dir),
        output_dir=work_dir,
        place_batch=functools.partial(sharding.place_batch, mesh=mesh),
        save_every=max(1, steps // 5),
        rate="frames",
        name="k-means",
    )
    return np.asarray(clusters.centroids)


if __name__ == "__main__":
    main()
