"""Adds rows with the units of perturbed recordings to the training rows of a vocoder.

    python -m tools.perturb_units --manifest=corpus/units.jsonl --split=train \\
        --output=corpus/perturbed.jsonl

Every recording is encoded once more, played faster or slower and with the acoustics of another room
and microphone, so that a vocoder learns the units of speakers whom it was not trained on. OUTPUT
has the rows of the split {path, units, durations, ...}, then the same rows with the units and
durations of the perturbed recordings.
"""

from speechgpt_jax import arguments, files, manifests
from speechgpt_jax.arguments import existing_file, finite_float, output_file, seed
from speechgpt_jax.speech import flags


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--manifest", required=True, type=existing_file, help="rows of units")
    parser.add_argument("--split", help="only the manifest's rows of this split")
    parser.add_argument("--output", required=True, type=output_file, help="JSONL")
    flags.add_hubert(parser)
    parser.add_argument(
        "--max_speed",
        type=finite_float(at_least=1, at_most=4),
        default=1.22,
        help="speeds are in [1/MAX_SPEED, MAX_SPEED]",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random numbers")
    args = parser.parse_args(argv)
    files.check_other_file(args.output, args.manifest)

    from speechgpt_jax.corpus.perturb_units import checked_rows, perturb_units
    from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit

    rows = checked_rows(manifests.read_manifest(args.manifest, args.split))
    speech2unit = Speech2Unit.from_pretrained(args.hubert)
    perturbed = perturb_units(rows, speech2unit, args.max_speed, args.seed)
    manifests.write_manifest(args.output, [*rows, *perturbed])
    print(f"{len(rows)} rows and {len(perturbed)} of perturbed recordings are in {args.output}.")


if __name__ == "__main__":
    arguments.run(main)
