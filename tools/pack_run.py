"""Packs the parameters of a run's newest checkpoint into one safetensors file.

    python -m tools.pack_run runs/tiny/stage2 models/base --dtype=bfloat16
    python -m tools.pack_run runs/tiny/stage3 models/chat --dtype=bfloat16 --base=models/base

Every command takes the packed run for a run. It has no optimizer state: training can start from it,
not resume it.
"""

from collections.abc import Sequence

from speechgpt_jax import arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "run", type=arguments.existing_folder, help="a run, or one of its checkpoints"
    )
    parser.add_argument("output", type=arguments.output_folder, help="folder of the packed run")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "int8"],
        help="default: as the run stores them; int8 has a scale for each row",
    )
    parser.add_argument("--base", type=arguments.existing_folder, help="packed base of an adapter")
    args = parser.parse_args(argv)

    from speechgpt_jax import checkpoints, files, gin_utils
    from speechgpt_jax.tokenizer import Tokenizer

    gin_utils.hush_libraries()
    files.refuse_existing(args.output, "parameters.safetensors", "tokenizer", "checkpoints")
    tokenizer = Tokenizer.from_pretrained(checkpoints.run_folder(args.run) / "tokenizer")
    with files.whole_folder(args.output) as unfinished:
        checkpoints.pack(args.run, unfinished, args.dtype, args.base)
        tokenizer.save_pretrained(unfinished / "tokenizer")


if __name__ == "__main__":
    arguments.run(main)
