"""Converts Whisper tiny.en's encoder into a HuBERT, from which the shipped one was trained.

    python -m tools.whisper_to_hubert hubert_start --targets=targets
    python -m tools.train_hubert --gin_file=gin/runs/hubert_from_whisper.gin --targets=targets \\
        --gin.train_hubert.train.start_from=hubert_start ...

All weights are Whisper's, but a frame attends to `attention_frames` frames on either side only; a
short training makes up for the difference. The projection to the targets of tools.hubert_targets is
fitted by least squares.
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_folder, output_folder


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("out", type=output_folder, help="gets config.json and model.safetensors")
    parser.add_argument(
        "--targets",
        required=True,
        type=existing_folder,
        help="written by tools.hubert_targets",
    )
    args = parser.parse_args(argv)
    # Imported now that the arguments are right: it takes seconds.
    from speechgpt_jax.conversion import whisper

    whisper.convert(args.out, args.targets)
    print(f"{args.out}: a HuBERT to start tools.train_hubert from.")


if __name__ == "__main__":
    arguments.run(main)
