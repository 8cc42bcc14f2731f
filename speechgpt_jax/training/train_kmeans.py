"""Fits the centroids that turn HuBERT features into units, over any amount of audio.

Features are kept in files, so memory does not grow with the audio; batches are split over all
devices.
"""

import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from rich.progress import track

from speechgpt_jax import files, manifests, sharding
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.float16 import to_float16
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert
from speechgpt_jax.speech.mapped_arrays import map_array, save_array
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.progress import check_run_folder

CLIPS_PER_FILE = 512


def choose_recordings(rows: Sequence[Mapping], count: int, seed: int) -> list[str]:
    """Paths of at most `count` recordings of a manifest's rows, drawn at random.

    Raises:
      UserError: a recording is missing.
    """
    manifests.check_recordings(rows)
    paths = [row["path"] for row in rows]
    return [*np.random.default_rng(seed).permutation(paths)][:count]


def extract_features(
    hubert_folder: str | os.PathLike, paths: list[str], work_dir: str | os.PathLike
) -> list[np.ndarray]:
    """Features of recordings: memory-mapped float16 [frames, D], one array per 512 recordings.

    They are written to `work_dir`. Files of an interrupted run are not computed again.

    Raises:
      UserError: a recording can't be read, its features are too large for float16, or `work_dir`
        holds features of another HuBERT or of other recordings.
    """
    check_run_folder(work_dir)
    weights = files.read_bytes(epath.Path(hubert_folder) / "model.safetensors", "a HuBERT")
    files.keep_settings(
        epath.Path(work_dir) / "inputs.json",
        {
            "hubert": hashlib.sha256(weights).hexdigest(),
            "recordings": hashlib.sha256(
                "\n".join(map(str, paths)).encode(errors="surrogatepass")
            ).hexdigest(),
        },
    )
    speech2unit = Speech2Unit(for_inference(load_hubert(hubert_folder)), None)
    feature_files = []
    for number in track(range(math.ceil(len(paths) / CLIPS_PER_FILE)), description="features"):
        file = epath.Path(work_dir) / f"features-{number:05d}.npy"
        feature_files.append(file)
        if file.exists():
            continue
        clips = paths[number * CLIPS_PER_FILE :][:CLIPS_PER_FILE]
        features = speech2unit.features([*map(load_audio, clips)])
        save_array(file, to_float16(np.concatenate(features), hubert_folder))
    return [map_array(file) for file in feature_files]


def train(
    features: list[np.ndarray],
    work_dir: str | os.PathLike,
    *,
    num_clusters: int,
    steps: int,
    batch_frames: int | None,
    tries: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Arrays of features [M, D] -> centroids float32 [K, D].

    Resumes from the newest checkpoint of `work_dir` if there is one.

    Args:
      features: any number of arrays, in memory or memory-mapped.
      work_dir: gets checkpoints and metrics.jsonl.
      num_clusters: K.
      steps: number of updates.
      batch_frames: frames drawn for each update (mini-batch k-means, Sculley 2010); None takes all
        frames each time (Lloyd's algorithm).
      tries: initialisations by k-means++, of which the one with the least inertia is taken.
      seed: seed of the initialisation and the batches.

    Raises:
      UserError: there are fewer frames than clusters, or `work_dir` was begun with other settings.
    """
    total = sum(map(len, features))
    # Refused settings must not be kept: the corrected command has the same folder.
    kmeans.check_enough(min(total, kmeans.INIT_SAMPLE), num_clusters)
    settings = {
        "num_clusters": num_clusters,
        "batch_frames": batch_frames,
        "tries": tries,
        "seed": seed,
    }
    files.keep_settings(epath.Path(work_dir) / "settings.json", settings)
    mesh = sharding.create_mesh(MeshConfig())
    frames = min(batch_frames or total, total) // mesh.size * mesh.size
    if frames == 0:
        raise UserError(f"{total} frames can't be split over {mesh.size} devices; give more audio.")
    sample = next(kmeans.FeatureBatches(features, kmeans.INIT_SAMPLE, seed=seed))["features"]
    clusters = kmeans.init_clusters(sample, num_clusters, seed=seed, tries=tries)
    # Lloyd's algorithm forgets the previous assignment; mini-batches accumulate theirs.
    decay = 1.0 if frames < total // mesh.size * mesh.size else 0.0

    def train_step(clusters, batch):
        clusters, inertia = kmeans.update(clusters, batch["features"], decay=decay)
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
