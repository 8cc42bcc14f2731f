"""Agreement of units and phones: the shipped encoder, k-means of MFCCs, and other encoders.

    python -m tests.benchmarks.measure_units --manifest=corpus/manifest.jsonl --clips=200 \\
        --hubert speechgpt_jax/assets/hubert runs/hubert_1/hubert

`python -m tools.eval_units --help` explains the figures; it measures one encoder.
"""

from speechgpt_jax import arguments
from speechgpt_jax.evaluation import units
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.shipped import SHIPPED_HUBERT
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tests.benchmarks import docs_table


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--manifest", required=True, type=arguments.existing_file, help="that of tools.eval_units"
    )
    parser.add_argument(
        "--hubert",
        nargs="+",
        type=arguments.existing_folder,
        default=[SHIPPED_HUBERT],
        help="encoders, all with the same number of units",
    )
    parser.add_argument(
        "--clips",
        type=arguments.positive_int,
        default=200,
        help="clips per group of speakers",
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    rows = units.choose_rows(read_manifest(args.manifest), args.clips)
    clips, phones, num_phones = units.load_labelled(rows)
    encoders = {folder: Speech2Unit.from_pretrained(folder) for folder in args.hubert}
    num_units = encoders[args.hubert[0]].num_units
    functions = {folder: units.hubert_units(encoder) for folder, encoder in encoders.items()}
    functions["k-means of MFCCs"] = units.mfcc_units(num_units)
    groups = [f"frames right: {group}" for group in clips if group != units.FIT]
    columns = [f"{num_units} units, {num_phones} phones", "PNMI", "units/s", *groups]
    table = docs_table.Table("units", columns)
    for name, encode in functions.items():
        score = units.score(encode(clips), phones, num_units)
        accuracies = (f"{accuracy:.3f}" for accuracy in score.accuracy.values())
        name = "shipped encoder" if name == SHIPPED_HUBERT else name
        table.add(name, f"{score.pnmi:.3f}", f"{score.units_per_second:.1f}", *accuracies)
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
