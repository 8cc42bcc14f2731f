"""Converts a HuBERT of fairseq or Hugging Face to a folder for --hubert.

    python -m tools.convert_hubert mhubert_base_vp_en_es_fr_it3.pt hubert
    python -m tools.convert_kmeans mhubert_base_vp_en_es_fr_it3_L11_km1000.bin hubert

CHECKPOINT is fairseq's .pt file or a folder of `transformers.HubertModel`; heads of pre-training or
fine-tuning (CTC, classification) are left out. If the model was trained on normalised audio
(fairseq's `task.normalize`, `do_normalize` in preprocessor_config.json), the encoder normalises its
input. fairseq is not needed, and no code from the pickle is run.
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_path, output_folder, positive_int
from speechgpt_jax.local_copies import local_copy


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "checkpoint", type=existing_path, help="fairseq's file or Hugging Face folder"
    )
    parser.add_argument("out", type=output_folder, help="new folder, or folder of the centroids")
    parser.add_argument(
        "--layer", type=positive_int, default=11, help="layer of the features, counted from 1"
    )
    args = parser.parse_args(argv)
    # Imported after the arguments are checked, because it takes seconds.
    import jax
    from flax import nnx

    from speechgpt_jax.conversion import hubert, weights

    with local_copy(args.checkpoint) as checkpoint:
        if not checkpoint.is_dir():
            print(weights.describe_sha256(checkpoint, hubert.PUBLISHED))
        converted = hubert.convert(checkpoint, args.out, args.layer)
    size = sum(x.size for x in jax.tree.leaves(nnx.state(converted, nnx.Param)))
    audio = "normalised" if converted.config.normalize else "unnormalised"
    print(
        f"{args.out}: HuBERT of {size:,} parameters, features of layer {args.layer}, {audio} audio."
    )


if __name__ == "__main__":
    arguments.run(main)
