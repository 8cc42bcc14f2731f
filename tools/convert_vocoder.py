"""Converts fairseq's unit HiFi-GAN (CodeHiFiGAN) to a folder for --vocoder.

    python -m tools.convert_vocoder g_00500000 config.json vocoder

It may have one speaker or several. No code from the pickle is run.
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_file, output_folder
from speechgpt_jax.local_copies import local_copy


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("checkpoint", type=existing_file, help="such as g_00500000")
    parser.add_argument("config", type=existing_file, help="the config.json beside it")
    parser.add_argument("out", type=output_folder, help="new folder")
    args = parser.parse_args(argv)
    # Imported after the arguments are checked, because it takes seconds.
    import jax
    from flax import nnx

    from speechgpt_jax.conversion import vocoder, weights

    with local_copy(args.checkpoint) as checkpoint:
        print(weights.describe_sha256(checkpoint, {}))
        converted = vocoder.convert(checkpoint, args.config, args.out)
    config = converted.config
    size = sum(x.size for x in jax.tree.leaves(nnx.state(converted, nnx.Param)))
    print(
        f"{args.out}: vocoder of {size:,} parameters, {config.num_embeddings} units,"
        f" {max(len(config.speakers), 1)} speakers."
    )


if __name__ == "__main__":
    arguments.run(main)
