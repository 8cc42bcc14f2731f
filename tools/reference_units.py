"""Encodes recordings of a new voice as training rows of a vocoder, each with two kinds of units.

    python -m tools.reference_units --manifest=voice/manifest.jsonl --output=corpus/voice.jsonl

The manifest is one of tools.record_voices, whose rows name a reference: the same text in the voice
whose units a language model writes. OUTPUT has two rows for each, {path, units, durations,
speaker, ...}: with the units of the recording, and with those of the reference, aligned in time.
"""

from speechgpt_jax import arguments, files, manifests
from speechgpt_jax.arguments import existing_file, output_file
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import flags


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--manifest", required=True, type=existing_file, help="table of recordings")
    parser.add_argument("--output", required=True, type=output_file, help="JSONL")
    flags.add_hubert(parser)
    args = parser.parse_args(argv)
    files.check_other_file(args.output, args.manifest)

    from speechgpt_jax.corpus.reference_units import reference_units
    from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit

    rows = manifests.read_manifest(args.manifest, "train")
    rows = [row for row in rows if row.get("reference")]
    if not rows:
        raise UserError(f"no row of {args.manifest} names a reference; see tools.record_voices.")
    manifests.check_recordings(rows, ("path", "reference"))
    found = reference_units(rows, Speech2Unit.from_pretrained(args.hubert))
    manifests.write_manifest(args.output, found)
    print(f"{len(found)} rows of {len(rows)} recordings are in {args.output}.")


if __name__ == "__main__":
    arguments.run(main)
