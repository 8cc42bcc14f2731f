"""Synthesizes sequences of units: one wav per row.

    python -m tools.synthesize --units=units.jsonl --output=wavs

Rows are {"id": "a", "units": [5, 9]}, optionally with "durations" (in codes of 20 ms) and "speaker"
(name or index); each becomes OUTPUT/id.wav. The wav of a row without an id, such as those of
tools.extract_units, is named like its recording.
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_file, finite_float, output_folder
from speechgpt_jax.speech import flags


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--units", required=True, type=existing_file, help="JSONL")
    flags.add_vocoder(parser)
    parser.add_argument("--output", required=True, type=output_folder, help="folder of the wavs")
    parser.add_argument(
        "--duration_scale",
        type=finite_float(at_least=0.01, at_most=100),
        default=1.0,
        help="2: half the speed",
    )
    args = parser.parse_args(argv)

    from speechgpt_jax.corpus.synthesize import synthesize

    count, seconds = synthesize(args.units, args.vocoder, args.output, args.duration_scale)
    print(f"{count} wavs, {seconds:.1f} s in all, are in {args.output}.")


if __name__ == "__main__":
    arguments.run(main)
