"""Repeating a text, learned from random weights at several learning rates.

    python -m tests.benchmarks.measure_learning_rate --records=large_corpus/records --update_docs

To repeat a text, attention has to find its place in it. Until a model can do so it guesses each
word, at the same loss for hundreds of steps. The runs are the first stage of the shipped model;
they resume, so an interrupted command can be given again.
"""

import pathlib

from speechgpt_jax import arguments
from speechgpt_jax.training.progress import read_metrics
from tests.benchmarks import docs_table, training_runs

RATES = (3e-3, 1e-3, 3e-4)
STEPS = (300, 600, 900)
AVERAGED = 50  # steps whose losses make one figure


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    training_runs.add_records_argument(parser)
    parser.add_argument("--runs", default="runs/learning_rate", help="folder of all runs")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    columns = [f"text loss after {step} steps" for step in STEPS]
    table = docs_table.Table("learning_rate", ["learning rate", *columns])
    for rate in RATES:
        run = pathlib.Path(args.runs) / f"{rate:g}"
        settings = {
            "demo_corpus.mixture.folder": args.records,
            "optimizer.AdamW.learning_rate": rate,
            "lm.train.steps": max(STEPS),
        }
        training_runs.train("gin/runs/tiny_stage1.gin", run, settings)
        table.add(f"{rate:g}", *(f"{loss:.2f}" for loss in losses(run)))
    if args.update_docs:
        table.update_docs()


def losses(run: pathlib.Path) -> list[float]:
    """Mean text loss, in nats per token, of the AVERAGED steps up to each of STEPS."""
    rows = read_metrics(run)
    means = []
    for step in STEPS:
        near = [r["text_loss"] for r in rows if step - AVERAGED < r["step"] <= step]
        means.append(sum(near) / len(near))
    return means


if __name__ == "__main__":
    arguments.run(main)
