"""K-means against scikit-learn."""

import numpy as np
import pytest
import sklearn.cluster

from speechgpt_jax.speech import kmeans


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((12, 8))
    return (centres[rng.integers(12, size=3_000)] + rng.standard_normal((3_000, 8))).astype("f4")


def test_assign_is_the_nearest_centroid(features):
    centroids = features[:50]
    distances = np.square(features[:, None] - centroids).sum(-1)
    np.testing.assert_array_equal(kmeans.assign(features, centroids), distances.argmin(1))


def test_lloyd_from_the_same_start_is_that_of_scikit_learn(features):
    start = features[:12]
    oracle = sklearn.cluster.KMeans(12, init=start, n_init=1, max_iter=25, tol=0).fit(features)
    centroids = start
    for _ in range(25):
        centroids, _ = kmeans.lloyd_step(features, centroids)
    np.testing.assert_allclose(centroids, oracle.cluster_centers_, rtol=1e-3, atol=1e-3)


def test_fit_is_as_good_as_scikit_learn(features):
    centroids = kmeans.fit(features, 12, steps=25, seed=0)
    _, inertia = kmeans.lloyd_step(features, centroids)
    oracle = sklearn.cluster.KMeans(12, n_init=1, random_state=0).fit(features)
    assert float(inertia) < 1.1 * oracle.inertia_ / len(features)


def test_too_few_features(features):
    with pytest.raises(ValueError, match="5 feature vectors cannot make 12 clusters"):
        kmeans.fit(features[:5], 12, steps=1, seed=0)
