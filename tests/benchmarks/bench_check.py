"""Time to check data when a run starts: new files, and files that were checked before.

    python -m tests.benchmarks.bench_check

Writes a file of dialogues like those of SpeechInstruct, in JSONL, and checks it as stage 2 does.
Then a restarted run is measured: hard links to that file, --checked_gb in all, each with its entry
in `.checked`. The time is until a new process can read the data.
"""

import functools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt_jax import arguments, prompts
from speechgpt_jax.data.checked import FOLDER
from speechgpt_jax.data.records import check_dialogues
from speechgpt_jax.data.sources import RecordFiles
from speechgpt_jax.manifests import write_jsonl
from speechgpt_jax.unit_text import units_to_text
from tasks.speech_instruct import DIALOGUE
from tests.benchmarks import docs_table, timing
from tests.benchmarks.dialogues import dialogue_lengths

NUM_UNITS = 1000


def write_dialogues(file: Path, count: int) -> None:
    """Writes `count` dialogues: a spoken question and a short written answer each."""
    rng = np.random.default_rng(0)
    rows = (
        {
            "prefix": prompts.DEFAULT_PREFIX,
            "plain_text": f"[Human]: {units_to_text(rng.integers(0, NUM_UNITS, length).tolist())}"
            "<eoh> [SpeechGPT]: it is raining <eos>",
        }
        for length in dialogue_lengths(count)
    )
    write_jsonl(file, rows)


def link(file: Path, count: int) -> None:
    """Makes links of a checked file beside it, and copies of what is remembered of it."""
    (remembered,) = (file.parent / FOLDER).iterdir()
    for number in range(1, count):
        name = f"dialogues-{number:05d}-of-{count:05d}.jsonl"
        os.link(file, file.parent / name)
        copied = remembered.name.replace(file.name, name)
        (remembered.parent / copied).write_bytes(remembered.read_bytes())


def opener(folder: str) -> Callable[[], None]:
    """A function that makes the data of `folder` ready to be read, as a run does."""

    def open_data():
        files = {"train": f"{folder}/*.jsonl"}
        RecordFiles(files, DIALOGUE, check_dialogues(NUM_UNITS)).get_dataset("train")

    return open_data


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--dialogues", type=arguments.positive_int, default=100_000)
    parser.add_argument("--checked_gb", type=arguments.positive_float, default=20.0)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    table = docs_table.Table("check", ["data", "GB", "seconds", "CPU seconds", "MB/s"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dialogues.jsonl"
        write_dialogues(file, args.dialogues)
        megabytes = file.stat().st_size / 1e6

        def measure(name: str, total: float) -> None:
            with timing.own_process(functools.partial(opener, folder)) as timed_run:
                wall, cpu, _ = timed_run()
            table.add(
                *(name, f"{total / 1e3:.2f}", f"{wall:.1f}", f"{cpu:.1f}", f"{total / wall:,.0f}")
            )

        measure("new, one file", megabytes)
        links = math.ceil(args.checked_gb * 1e3 / megabytes)
        link(file, links)
        measure(f"checked before, {links} files", links * megabytes)
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
