"""Measures the information about phones in units, for seen voices, an unseen voice and a human.

    python -m tools.eval_units --manifest=corpus/manifest.jsonl [--hubert=FOLDER]

Prints, for the HuBERT's units and for the same number of MFCC clusters:

- PNMI: the share of the phones' entropy that the units explain (Hsu et al. 2021), seen voices;
- units per second without repeats, seen voices;
- frame accuracy of each group of speakers, if every unit is replaced by its most frequent phone in
  the training clips.

Phones of synthesized clips come from flite, which must be installed; those of a human are aligned
by PocketSphinx. Groups without clips in the manifest are left out.
"""

from speechgpt_jax import arguments, manifests
from speechgpt_jax.arguments import existing_file, positive_int
from speechgpt_jax.speech import flags


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--manifest",
        required=True,
        type=existing_file,
        help="rows with `path`, `text`, `speaker` and `split`, as of tools.build_demo_corpus",
    )
    flags.add_hubert(parser)
    parser.add_argument("--clips", type=positive_int, default=300, help="most clips of a group")
    args = parser.parse_args(argv)
    # Imported now that the arguments are right: it takes seconds.
    import rich
    from rich.table import Table

    from speechgpt_jax.evaluation import units
    from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit

    rows = units.choose_rows(manifests.read_manifest(args.manifest), args.clips)
    speech2unit = Speech2Unit.from_pretrained(args.hubert)
    clips, phones, num_phones = units.load_labelled(rows)
    encoders = {
        "HuBERT": units.hubert_units(speech2unit),
        "MFCC": units.mfcc_units(speech2unit.num_units),
    }
    table = Table(title=f"{speech2unit.num_units} units, {num_phones} phones")
    for column in ("units", "PNMI", "units/s", *[group for group in clips if group != units.FIT]):
        table.add_column(column)
    for name, encode in encoders.items():
        score = units.score(encode(clips), phones, speech2unit.num_units)
        accuracies = [f"{accuracy:.3f}" for accuracy in score.accuracy.values()]
        table.add_row(name, f"{score.pnmi:.3f}", f"{score.units_per_second:.1f}", *accuracies)
    rich.print(table)


if __name__ == "__main__":
    arguments.run(main)
