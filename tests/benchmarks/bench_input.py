"""Speed of stage 2's input pipeline: packed batches from cached records.

    python -m tests.benchmarks.bench_input --rounds=5

Reads records as `seqio_cache_tasks` writes them (tokens of dialogues like those of SpeechInstruct,
lengths log-normal with a median of 180, at most 512), shuffles them, packs them into rows of 512
and returns NumPy arrays. Padding is not counted as tokens. CPU time, summed over all threads, is
what one core would need.

For scale: a TPU v5p host feeds 4 chips. A 7B model takes 6 x 6.74e9 flops per token, so chips that
reach 60 % of their 459 TFLOP/s consume 6,810 tokens/s each. Batches are made while the chips
compute; one core's load is the share of that time for which one core of the host is busy.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax import arguments
from speechgpt_jax.data.pipeline import load_batches
from speechgpt_jax.data.vocabulary import Vocabulary
from tasks import speech_instruct
from tests.benchmarks import docs_table, timing
from tests.benchmarks.dialogues import LONGEST, dialogue_lengths

GOLDEN = "tests/testdata/golden"
LENGTH, ROWS, PREFIX = LONGEST, 32, 20
V5P_TOKENS_PER_SECOND = 4 * 0.6 * 459e12 / (6 * 6.74e9)


def cache_task(folder: str, lengths: np.ndarray, shards: int = 8) -> str:
    """Registers a task, writes a cache for it in SeqIO's layout and returns its name."""
    # The file doesn't exist: only the cache is read.
    speech_instruct.dialogue_lines("bench_input", {"train": "dialogues.jsonl"}, GOLDEN)
    vocab_size = Vocabulary.from_pretrained(GOLDEN).vocab_size
    cache = Path(folder) / seqio.get_task_dir_from_name("bench_input")
    cache.mkdir()
    features = {key: {"shape": [None], "dtype": "int32"} for key in ("inputs", "targets")}
    info = {"num_shards": shards, "features": features, "seqio_version": "0.0.20"}
    Path(seqio.get_cached_info_path(str(cache), "train")).write_text(json.dumps(info))
    stats = json.dumps({"examples": len(lengths)})
    Path(seqio.get_cached_stats_path(str(cache), "train")).write_text(stats)
    rng = np.random.default_rng(0)
    prefix = seqio.get_cached_tfrecord_prefix(str(cache), "train")
    for shard in range(shards):
        with tf.io.TFRecordWriter(f"{prefix}-{shard:05d}-of-{shards:05d}") as writer:
            for length in lengths[shard::shards]:
                tokens = rng.integers(3, vocab_size, length - 1, np.int32)
                example = {"inputs": tokens[:PREFIX], "targets": tokens[PREFIX:]}
                writer.write(seqio.dict_to_tfexample(example).SerializeToString())
    (cache / "COMPLETED").touch()
    return "bench_input"


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--rounds", type=arguments.positive_int, default=5)
    parser.add_argument("--dialogues", type=arguments.at_least(ROWS), default=20_000)
    parser.add_argument(
        "--batches", type=arguments.positive_int, default=30, help="batches per round"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    lengths = dialogue_lengths(args.dialogues, PREFIX + 2)
    with tempfile.TemporaryDirectory() as folder:
        batches = load_batches(
            cache_task(folder, lengths),
            "train",
            batch_size=ROWS,
            sequence_length=LENGTH,
            cache_dir=folder,
        )
        used = []

        def read():
            for _ in range(args.batches):
                used.append((next(batches)["decoder_segment_ids"] > 0).mean())

        ((_, cpu),) = timing.wall_and_cpu(args.rounds, read)
        (position,) = batches.state().values()
        ((_, cpu_of_position),) = timing.wall_and_cpu(args.rounds, batches.state)
    filled = float(np.mean(used))
    tokens = args.batches * ROWS * LENGTH * filled
    padded = lengths[: len(lengths) // ROWS * ROWS].reshape(-1, ROWS)
    fill_of_padded = padded.sum() / padded.max(1).sum() / ROWS
    table = docs_table.Table("input", ["packed batches of dialogues", "figure"])
    table.add("share of a batch that is not padding", f"{filled:.1%}")
    table.add(f"the same, padded to the longest of {ROWS} instead", f"{fill_of_padded:.1%}")
    table.add("million tokens/s of CPU time", f"{tokens / cpu / 1e6:.2f}")
    table.add("tokens/s that a v5p host consumes", f"{V5P_TOKENS_PER_SECOND:,.0f}")
    table.add("one core's load on that host", f"{V5P_TOKENS_PER_SECOND * cpu / tokens:.1%}")
    table.add("MB of the position at a save", f"{len(position) / 1e6:.2f}")
    table.add("seconds of CPU time to take it", f"{cpu_of_position:.3f}")
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
