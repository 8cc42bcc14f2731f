"""Centroids that fairseq clustered with -> FOLDER/kmeans.safetensors, beside a HuBERT.

    python -m tools.convert_kmeans mhubert_base_vp_en_es_fr_it3_L11_km1000.bin hubert

FILE is scikit-learn's MiniBatchKMeans (or KMeans) as joblib wrote it. Only `cluster_centers_` is
taken; nothing that is pickled in the file is run.
"""

import argparse
import pathlib

import numpy as np
import safetensors.numpy

from speechgpt_jax.conversion import output, pickles, weights
from speechgpt_jax.errors import UserError, one_line_errors

PUBLISHED = {
    "c70f5416c38044d0c20e33fdeedf4533974a8ac4029985cdef3b755038381a0b": (
        "the published 1000 clusters of mhubert_base_vp_en_es_fr_it3, layer 11"
    ),
}


def convert(file: pathlib.Path, out: pathlib.Path) -> np.ndarray:
    """Writes `kmeans.safetensors`; returns the centroids [K, D].

    Raises:
      UserError: the file is damaged or refused, or holds no centroids.
    """
    output.refuse_existing(out, "kmeans.safetensors")
    state = getattr(pickles.load_joblib(file), "state", None)
    centroids = state.get("cluster_centers_") if isinstance(state, dict) else None
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2:
        raise UserError(f"{file} has no cluster_centers_ [K, D]; expected a fitted k-means.")
    centroids = weights.from_arrays(file, {"cluster_centers_": centroids}).read("cluster_centers_")
    centroids = centroids.astype(np.float32)
    with output.whole_folder(out) as folder:
        path = folder / "kmeans.safetensors"
        safetensors.numpy.save_file({"cluster_centers": centroids}, path)
    return centroids


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    with one_line_errors():
        print(weights.describe_sha256(args.file, PUBLISHED))
        centroids = convert(args.file, args.out)
        print(f"{args.out}: {len(centroids)} centroids of {centroids.shape[1]} features.")


if __name__ == "__main__":
    main()
