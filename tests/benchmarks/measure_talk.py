"""Accuracy of the shipped model, or of another run, on all held-out examples.

    python -m tests.benchmarks.measure_talk --update_docs
    python -m tests.benchmarks.measure_talk --run=runs/tiny/stage3 --examples=32

Word error rates and accuracies, each with its 95 % interval, by split; answers are forced into
the form of the task, as chat and server do. Form errors are counted on answers without masks.
Spoken answers are judged by two recognisers. A second table has the questions by topic. With
--update_docs the figures of free answers are saved beside the model too, for `make demo`.
"""

import collections
from collections.abc import Sequence

import numpy as np

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import arguments
from speechgpt_jax.demo_world import world
from speechgpt_jax.evaluation.evaluate import evaluate_run
from speechgpt_jax.evaluation.metrics import normalize, rate, with_intervals
from speechgpt_jax.evaluation.spoken import SpokenAnswers
from speechgpt_jax.prompts import Response
from speechgpt_jax.shipped import SHIPPED_MODEL
from tests.benchmarks import docs_table

TASKS = {
    "test": (
        "demo_asr",
        "demo_asr_free_order",
        "demo_tts",
        "demo_text_to_text",
        "demo_speech_to_text",
        "demo_speech_to_speech",
    ),
    "unheard_voice": (
        "demo_asr",
        "demo_asr_free_order",
        "demo_speech_to_text",
        "demo_speech_to_speech",
    ),
    "human": ("demo_asr",),
}


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--run", type=arguments.existing_folder, default=SHIPPED_MODEL)
    parser.add_argument(
        "--examples", type=arguments.positive_int, help="maximum per task; default: all"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    spoken, topics = SpokenAnswers.by_default(), Topics()
    table = docs_table.Table("talk", ["task: figure", *(s.replace("_", " ") for s in TASKS)])
    cells: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for split, names in TASKS.items():
        which = {"tasks": names, "split": split, "num_examples": args.examples}
        metrics = evaluate_run(
            args.run,
            **which,
            forced=True,
            more_metrics=[spoken, topics],
        )
        free = evaluate_run(args.run, **which, output_dir=args.run if args.update_docs else None)
        for task, figures in metrics.items():
            figures |= {k: x for k, x in free[task].items() if k.startswith("form_error")}
            for name, text in with_intervals(figures).items():
                cells[f"{task.removeprefix('demo_')}: {name.replace('_', ' ')}"][split] = text
    for name, by_split in cells.items():
        table.add(name, *(by_split.get(split, "") for split in TASKS))
    if args.update_docs:
        table.update_docs()
        topics.table().update_docs()
    else:
        topics.table()


class Topics:
    """Metric that counts right transcripts and answers of spoken questions by topic."""

    def __init__(self):
        self._topic_of = {normalize(d.answer): d.topic for d in world.questions()}
        self._right = collections.defaultdict(list)
        self._understood = collections.defaultdict(list)

    def __call__(
        self, targets: Sequence[Response], predictions: Sequence[Response]
    ) -> dict[str, float]:
        """A metric function that adds no figures."""
        for target, prediction in zip(targets, predictions, strict=True):
            if target.units or not target.question:
                continue
            topic = self._topic_of[normalize(target.text)]
            self._right[topic].append(normalize(target.text) == normalize(prediction.text))
            same = normalize(target.question) == normalize(prediction.question)
            self._understood[topic].append(same)
        return {}

    def table(self) -> docs_table.Table:
        """One row for each topic."""
        table = docs_table.Table(
            "talk_topics",
            ["spoken questions about", "examples", "transcript right", "answer right"],
        )
        for topic, right in sorted(self._right.items()):
            total = np.ones(len(right))
            texts = [
                with_intervals(rate("share", counts, total))["share"]
                for counts in (self._understood[topic], right)
            ]
            table.add(topic, str(len(right)), *texts)
        return table


if __name__ == "__main__":
    arguments.run(main)
