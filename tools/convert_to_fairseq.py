"""Converts a HuBERT, its centroids or a vocoder to files that fairseq's own code loads.

    python -m tools.convert_to_fairseq hubert FOLDER OUT     # OUT/hubert.pt
    python -m tools.convert_to_fairseq kmeans FOLDER OUT     # OUT/kmeans.bin, for joblib.load
    python -m tools.convert_to_fairseq vocoder FOLDER OUT    # OUT/g_00000000 and OUT/config.json

FOLDER is what --hubert or --vocoder takes.
"""

from speechgpt_jax import arguments, files
from speechgpt_jax.arguments import existing_folder, output_folder
from speechgpt_jax.local_copies import written_locally


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("what", choices=("hubert", "kmeans", "vocoder"), help="kind of model")
    parser.add_argument("folder", type=existing_folder, help="HuBERT, centroids or vocoder")
    parser.add_argument("out", type=output_folder, help="new folder")
    args = parser.parse_args(argv)
    # Imported after the arguments are checked, because it takes seconds.
    from speechgpt_jax.conversion import fairseq

    with files.whole_folder(args.out) as out, written_locally(out) as local:
        local.mkdir(exist_ok=True)
        fairseq.WRITERS[args.what](args.folder, local)
    print(f"The {args.what} of {args.folder} is in {args.out}.")


if __name__ == "__main__":
    arguments.run(main)
