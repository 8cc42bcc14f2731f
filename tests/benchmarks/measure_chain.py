"""Spoken answers with and without the texts in between: chain of modality.

    python -m tests.benchmarks.measure_chain --base=runs/tiny/stage2_words \
        --records=large_corpus/records --update_docs

Two runs start from the same base, which knows no spoken questions, and see the same numbers of
dialogues. One writes transcript, text answer and units, as SpeechGPT does (Zhang et al. 2023,
section 4.3), the other units alone. Recognisers judge what both say on held-out questions; each
figure has its 95 % interval. The runs resume, so an interrupted command can be given again.
"""

import pathlib

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import arguments
from speechgpt_jax.evaluation.evaluate import evaluate_run
from speechgpt_jax.evaluation.metrics import with_intervals
from speechgpt_jax.evaluation.spoken import SpokenAnswers
from tests.benchmarks import docs_table, training_runs

SPLITS = ("test", "unheard_voice")
FIGURES = (
    "whisper_answer_wer",
    "whisper_understood",
    "pocketsphinx_answer_wer",
    "pocketsphinx_understood",
)


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--base", type=arguments.existing_folder, required=True, help="run of the second stage"
    )
    training_runs.add_records_argument(parser)
    parser.add_argument("--runs", default="runs/chain", help="folder of both runs")
    parser.add_argument("--steps", type=arguments.positive_int, default=1500)
    parser.add_argument(
        "--examples", type=arguments.positive_int, help="maximum per split; default: all"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    measured = {}
    for name in ("with", "without"):
        run = pathlib.Path(args.runs) / name
        settings = {
            "demo_corpus.mixture.name": f"{name}_chain",
            "demo_corpus.mixture.folder": args.records,
            "lm.train.start_from": args.base,
            "lm.train.steps": args.steps,
        }
        training_runs.train("gin/runs/tiny_stage2.gin", run, settings)
        for split in SPLITS:
            # Both read the same prompts; the task's targets have the right answers as text.
            metrics = evaluate_run(
                run,
                tasks=["demo_speech_to_speech"],
                split=split,
                num_examples=args.examples,
                more_metrics=[SpokenAnswers.by_default()],
            )
            measured[name, split] = with_intervals(metrics["demo_speech_to_speech"])
    table = docs_table.Table("chain", ["spoken answers", "with the texts", "without"])
    for split in SPLITS:
        for figure in FIGURES:
            cells = [measured[name, split][figure] for name in ("with", "without")]
            table.add(f"{split.replace('_', ' ')}: {figure.replace('_', ' ')}", *cells)
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
