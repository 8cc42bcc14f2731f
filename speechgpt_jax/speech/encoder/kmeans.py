"""K-means over feature vectors, fitted on all of them at once or on batches.

Shapes: M feature vectors, D their size, K clusters. Features may be sharded along M.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.batches import NumberedBatches

# Feature vectors among which k-means++ looks for the first centroids.
INIT_SAMPLE = 50_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clusters:
    """State of a fit: steps taken [], centroids [K, D], features assigned to each so far [K]."""

    step: jax.Array
    centroids: jax.Array
    counts: jax.Array


@jax.jit
def assign(features: jax.Array, centroids: jax.Array) -> jax.Array:
    """features [..., D], centroids [K, D] -> cluster ids [...] of the nearest centroids, int32."""
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid.
    scores = features @ centroids.T - 0.5 * jnp.square(centroids).sum(-1)
    return scores.argmax(-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="num_clusters")
def init_centroids(features: jax.Array, num_clusters: int, key: jax.Array) -> jax.Array:
    """k-means++ (Arthur and Vassilvitskii 2007): features [M, D] -> centroids [K, D].

    Each centroid is a feature vector drawn with probability proportional to its squared distance
    to the nearest centroid so far.
    """
    keys = jax.random.split(key, num_clusters)
    first = features[jax.random.randint(keys[0], (), 0, len(features))]
    distances = jnp.square(features - first).sum(-1)

    def draw(distances, key):
        centroid = features[jax.random.categorical(key, jnp.log(distances))]
        return jnp.minimum(distances, jnp.square(features - centroid).sum(-1)), centroid

    _, rest = jax.lax.scan(draw, distances, keys[1:])
    return jnp.concatenate([first[None], rest])


def init_clusters(
    features: np.ndarray, num_clusters: int, *, seed: int, tries: int = 1
) -> Clusters:
    """State before a fit: the best of `tries` runs of k-means++ by the inertia of features [M, D].

    Raises:
      UserError: fewer feature vectors than clusters.
    """
    check_enough(len(features), num_clusters)
    features, keys = jnp.asarray(features), jax.random.split(jax.random.key(seed), tries)
    starts = [init_centroids(features, num_clusters, key) for key in keys]
    best = min(starts, key=lambda centroids: float(inertia(features, centroids)))
    return Clusters(jnp.zeros((), jnp.int32), best, jnp.zeros(num_clusters))


def check_enough(num_features: int, num_clusters: int) -> None:
    """Raises a UserError if there are fewer feature vectors than clusters."""
    if num_features < num_clusters:
        raise UserError(
            f"{num_features} feature vectors cannot make {num_clusters} clusters; "
            "give more recordings or fewer clusters."
        )


@jax.jit
def inertia(features: jax.Array, centroids: jax.Array) -> jax.Array:
    """Mean squared distance of features [M, D] to the nearest of centroids [K, D], a scalar."""
    return jnp.square(features - centroids[assign(features, centroids)]).sum(-1).mean()


@functools.partial(jax.jit, static_argnames="decay")
def update(clusters: Clusters, features: jax.Array, decay: float) -> tuple[Clusters, jax.Array]:
    """Moves each centroid to the mean of its features in this batch and in earlier ones.

    A cluster without features stays where it is.

    Args:
      clusters: state before this step.
      features: a batch [M, D].
      decay: weight of the features of earlier batches. 0 is Lloyd's iteration on the batch, 1 is
        mini-batch k-means (Sculley 2010).

    Returns:
      the state after this step, and the batch's inertia by the centroids before it.
    """
    old = clusters.centroids
    ids, before = assign(features, old), decay * clusters.counts
    counts = before + jax.ops.segment_sum(jnp.ones(len(features)), ids, len(old))
    sums = before[:, None] * old + jax.ops.segment_sum(features, ids, len(old))
    empty = (counts == 0)[:, None]
    moved = jnp.where(empty, old, sums / (counts[:, None] + empty))
    error = jnp.square(features - old[ids]).sum(-1).mean()
    return Clusters(clusters.step + 1, moved, counts), error


def fit(features: np.ndarray, num_clusters: int, *, steps: int, seed: int) -> np.ndarray:
    """features [M, D] float32 -> centroids [K, D], by k-means++ on a sample, then Lloyd on all.

    Args:
      features: [M, D].
      num_clusters: K.
      steps: iterations of Lloyd's algorithm.
      seed: seed of the sample and of k-means++.

    Raises:
      UserError: fewer feature vectors than clusters.
    """
    sample = features[np.random.default_rng(seed).permutation(len(features))[:INIT_SAMPLE]]
    clusters = init_clusters(sample, num_clusters, seed=seed)
    features = jnp.asarray(features)
    for _ in range(steps):
        clusters, _ = update(clusters, features, decay=0.0)
    return np.asarray(clusters.centroids)


class FeatureBatches(NumberedBatches):
    """Endless batches {"features": float32 [frames, D]} drawn from arrays of [M, D].

    The arrays may be memory-mapped files: only the drawn vectors are read.
    """

    def __init__(self, arrays: Sequence[np.ndarray], frames: int, *, seed: int):
        super().__init__(seed)
        self._arrays, self._frames = arrays, frames
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        """Total number of feature vectors."""
        return int(self._ends[-1])

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`frames` vectors without repetition, in the order of the arrays; at most all of them."""
        if self._frames >= len(self):
            return {"features": np.concatenate(self._arrays).astype(np.float32)}
        places = np.sort(rng.choice(len(self), self._frames, replace=False))
        parts = np.split(places, np.searchsorted(places, self._ends[:-1]))
        starts = (0, *self._ends[:-1])
        rows = [array[part - start] for array, part, start in zip(self._arrays, parts, starts)]
        return {"features": np.concatenate(rows).astype(np.float32)}
