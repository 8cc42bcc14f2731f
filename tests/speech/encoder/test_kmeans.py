"""K-means against scikit-learn."""

import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder import kmeans


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((12, 8))
    return (centres[rng.integers(12, size=3_000)] + rng.standard_normal((3_000, 8))).astype("f4")


@pytest.fixture
def start(features):
    clusters = kmeans.init_clusters(features, 12, seed=0)
    return kmeans.Clusters(clusters.step, features[:12], clusters.counts)


def test_assign_is_the_nearest_centroid(features):
    centroids = features[:50]
    distances = np.square(features[:, None] - centroids).sum(-1)
    np.testing.assert_array_equal(kmeans.assign(features, centroids), distances.argmin(1))


@pytest.mark.slow
def test_without_memory_it_is_lloyd(features, start):
    import sklearn.cluster

    init = np.asarray(start.centroids)
    oracle = sklearn.cluster.KMeans(12, init=init, n_init=1, max_iter=25, tol=0).fit(features)
    clusters = start
    for _ in range(25):
        clusters, _ = kmeans.update(clusters, features, decay=0.0)
    np.testing.assert_allclose(clusters.centroids, oracle.cluster_centers_, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_with_memory_it_is_mini_batch_k_means(features, start):
    import sklearn.cluster

    init = np.asarray(start.centroids)
    oracle = sklearn.cluster.MiniBatchKMeans(12, init=init, n_init=1, reassignment_ratio=0)
    clusters = start
    for batch in features.reshape(10, 300, 8):
        oracle.partial_fit(batch)
        clusters, _ = kmeans.update(clusters, batch, decay=1.0)
    np.testing.assert_allclose(clusters.centroids, oracle.cluster_centers_, rtol=1e-3, atol=1e-3)
    assert clusters.step == 10 and clusters.counts.sum() == 3_000


@pytest.mark.slow
def test_a_cluster_without_features_stays(features, start):
    far = np.array(start.centroids)
    far[3] = 1e3
    clusters = kmeans.Clusters(start.step, far, start.counts)
    for decay in (0.0, 1.0):
        moved, _ = kmeans.update(clusters, features, decay=decay)
        np.testing.assert_array_equal(moved.centroids[3], far[3])


@pytest.mark.slow
def test_fit_is_as_good_as_scikit_learn(features):
    import sklearn.cluster

    centroids = kmeans.fit(features, 12, steps=25, seed=0)
    oracle = sklearn.cluster.KMeans(12, n_init=1, random_state=0).fit(features)
    assert float(kmeans.inertia(features, centroids)) < 1.1 * oracle.inertia_ / len(features)


def test_the_best_of_several_starts_is_taken(features):
    starts = [kmeans.init_clusters(features, 12, seed=3, tries=tries) for tries in (1, 6)]
    one, best = (float(kmeans.inertia(features, start.centroids)) for start in starts)
    assert best < one


def test_batches_are_drawn_from_all_files_and_resume(tmp_path):
    rows = np.arange(70, dtype=np.float16)[:, None]
    for i, part in enumerate(np.split(rows, [10, 11, 40])):
        np.save(tmp_path / f"{i}.npy", part)
    arrays = [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(4)]
    batches, again = (kmeans.FeatureBatches(arrays, 16, seed=0) for _ in range(2))
    seen = [next(batches)["features"][:, 0] for _ in range(40)]
    assert all(len(set(batch)) == 16 for batch in seen)
    assert set(np.concatenate(seen)) == set(range(70))
    again.restore(batches.state())
    np.testing.assert_array_equal(next(batches)["features"], next(again)["features"])
    everything = next(kmeans.FeatureBatches(arrays, 100, seed=0))["features"]
    np.testing.assert_array_equal(everything, rows)


def test_fewer_features_than_clusters_are_refused(features):
    with pytest.raises(UserError, match="5 feature vectors cannot make 12 clusters"):
        kmeans.fit(features[:5], 12, steps=1, seed=0)
