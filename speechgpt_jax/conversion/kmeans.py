"""Centroids of scikit-learn's k-means, written by joblib -> `kmeans.safetensors`."""

import pathlib

import numpy as np

from speechgpt_jax import files
from speechgpt_jax.conversion import pickles, weights
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.speech2unit import save_centroids

PUBLISHED = {
    "c70f5416c38044d0c20e33fdeedf4533974a8ac4029985cdef3b755038381a0b": (
        "the published 1000 clusters of mhubert_base_vp_en_es_fr_it3, layer 11"
    ),
}


def convert(file: str | pathlib.Path, out: str | pathlib.Path) -> np.ndarray:
    """Writes `kmeans.safetensors` into the folder `out`; returns the centroids float32 [K, D].

    Raises:
      UserError: the file is damaged or unsafe to read, or holds no centroids.
    """
    files.refuse_existing(out, "kmeans.safetensors")
    if pathlib.Path(file).suffix == ".npy":
        raise UserError(
            f"{file} is an array of NumPy; expected scikit-learn's KMeans or MiniBatchKMeans, "
            "fitted and written by joblib.dump. Set its cluster_centers_ to the array."
        )
    state = getattr(pickles.load_joblib(file), "state", None)
    centroids = state.get("cluster_centers_") if isinstance(state, dict) else None
    if not (
        isinstance(centroids, np.ndarray)
        and centroids.ndim == 2
        and centroids.size
        and np.issubdtype(centroids.dtype, np.floating)
    ):
        raise UserError(
            f"{file} has no cluster_centers_, real numbers [K, D]; expected scikit-learn's KMeans"
            " or MiniBatchKMeans, fitted and written by joblib.dump."
        )
    centroids = weights.from_arrays(file, {"cluster_centers_": centroids}).read("cluster_centers_")
    centroids = centroids.astype(np.float32)
    with files.whole_folder(out) as folder:
        save_centroids(folder, centroids)
    return centroids
