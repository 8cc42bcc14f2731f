"""Held-out figures of the demo, read from evaluation.json of the runs of `make demo`.

    make demo
    python -m tests.benchmarks.measure_demo --runs=runs/demo --update_docs

If RUNS/text_to_unit has been trained and evaluated too, a second table shows its figures:

    python -m speechgpt_jax.evaluate --run=runs/demo/text_to_unit --tasks=demo_tts
"""

import pathlib

from speechgpt_jax import arguments, files
from speechgpt_jax.evaluation.metrics import with_intervals
from tests.benchmarks import docs_table

SPLITS = ("test", "unheard_voice")


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--runs",
        type=arguments.existing_folder,
        default="runs/demo",
        help="output folder of the demo",
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    runs = pathlib.Path(args.runs)
    tables = [table("demo", [runs / "stage2", runs / "stage3"])]
    if (runs / "text_to_unit" / "evaluation.json").exists():
        tables.append(table("text_to_unit", [runs / "text_to_unit"]))
    if args.update_docs:
        for measured in tables:
            measured.update_docs()


def table(name: str, runs: list[pathlib.Path]) -> docs_table.Table:
    """A row for each task and figure of the runs, a column for each split."""
    result = docs_table.Table(name, ["task: figure", *(s.replace("_", " ") for s in SPLITS)])
    for run in runs:
        by_split = files.read_json(run / "evaluation.json", "the figures of an evaluated run")
        texts = [
            {task: with_intervals(figures) for task, figures in by_split.get(split, {}).items()}
            for split in SPLITS
        ]
        for task, figures in texts[0].items():
            for figure in figures:
                cells = [split_texts.get(task, {}).get(figure, "") for split_texts in texts]
                result.add(f"{task}: {figure.replace('_', ' ')}", *cells)
    return result


if __name__ == "__main__":
    arguments.run(main)
