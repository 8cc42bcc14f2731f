"""Converts k-means centroids of scikit-learn to OUT/kmeans.safetensors.

    python -m tools.convert_kmeans mhubert_base_vp_en_es_fr_it3_L11_km1000.bin hubert

FILE is a MiniBatchKMeans or KMeans written by joblib, compressed or not. Only `cluster_centers_` is
read, and no code from the pickle is run.
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_file, output_folder
from speechgpt_jax.local_copies import local_copy


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("file", type=existing_file, help="written by joblib")
    parser.add_argument("out", type=output_folder, help="folder of the HuBERT")
    args = parser.parse_args(argv)
    # Imported after the arguments are checked, because it takes seconds.
    from speechgpt_jax.conversion import kmeans, weights

    with local_copy(args.file) as file:
        print(weights.describe_sha256(file, kmeans.PUBLISHED))
        centroids = kmeans.convert(file, args.out)
    print(f"{args.out}: {len(centroids)} centroids of {centroids.shape[1]} features.")


if __name__ == "__main__":
    arguments.run(main)
