"""K-means over feature vectors: fit by Lloyd's iterations, apply as one matrix product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def assign(features: jax.Array, centroids: jax.Array) -> jax.Array:
    """features [..., D], centroids [K, D] -> cluster ids [...] of the nearest centroid.

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid.
    """
    scores = features @ centroids.T - 0.5 * jnp.square(centroids).sum(-1)
    return scores.argmax(-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="num_clusters")
def init_centroids(features: jax.Array, num_clusters: int, key: jax.Array) -> jax.Array:
    """k-means++ (Arthur and Vassilvitskii 2007): features [M, D] -> centroids [K, D].

    Each next centroid is drawn with probability proportional to the squared distance to the
    nearest one so far.
    """
    keys = jax.random.split(key, num_clusters)
    first = features[jax.random.randint(keys[0], (), 0, len(features))]
    distances = jnp.square(features - first).sum(-1)

    def draw(distances, key):
        centroid = features[jax.random.categorical(key, jnp.log(distances))]
        return jnp.minimum(distances, jnp.square(features - centroid).sum(-1)), centroid

    _, rest = jax.lax.scan(draw, distances, keys[1:])
    return jnp.concatenate([first[None], rest])


@jax.jit
def lloyd_step(features: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One iteration: features [M, D], centroids [K, D] -> (new centroids [K, D], inertia).

    An empty cluster keeps its centroid. Inertia is the mean squared distance before the move.
    """
    ids = assign(features, centroids)
    sums = jax.ops.segment_sum(features, ids, len(centroids))
    counts = jax.ops.segment_sum(jnp.ones(len(features)), ids, len(centroids))[:, None]
    moved = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centroids)
    return moved, jnp.square(features - centroids[ids]).sum(-1).mean()


def fit(
    features: np.ndarray, num_clusters: int, *, steps: int, seed: int, init_sample: int = 50_000
) -> np.ndarray:
    """features [M, D] float32 -> centroids [K, D]: k-means++ on a sample, then Lloyd on all.

    Raises:
      ValueError: fewer feature vectors than clusters.
    """
    if len(features) < num_clusters:
        raise ValueError(
            f"{len(features)} feature vectors cannot make {num_clusters} clusters; give more sound."
        )
    rng = np.random.default_rng(seed)
    sample = features[rng.permutation(len(features))[:init_sample]]
    centroids = init_centroids(jnp.asarray(sample), num_clusters, jax.random.key(seed))
    features = jnp.asarray(features)
    for _ in range(steps):
        centroids, _ = lloyd_step(features, centroids)
    return np.asarray(centroids)
