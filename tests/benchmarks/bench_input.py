"""The input of stage 2: packed batches from cached records, and what a v5p host would need.

    .venv/bin/python -m tests.benchmarks.bench_input --rounds=5

Records as `seqio_cache_tasks` writes them (tokens of SpeechInstruct-like dialogues, log-normal
lengths with a median of 180, at most 512), shuffled, packed into rows of 512, to NumPy. Tokens that
are no padding, a second of wall and of CPU time; the latter is what one core does, however many
worked on it.

A v5p host feeds 4 chips. A 7B model takes 6 x 6.74e9 flops a token: at 60 % of 459 TFLOP/s a chip
eats 6,810 tokens/s and the host 27,240. Batches are made while the chips compute; by one core of
the host alone a batch takes the printed share of the time of a step.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data.pipeline import load_batches
from speechgpt_jax.data.vocabulary import Vocabulary
from tasks import speech_instruct
from tests.benchmarks import timing
from tests.benchmarks.dialogues import LONGEST, dialogue_lengths

GOLDEN = "tests/testdata/golden"
LENGTH, ROWS, PREFIX = LONGEST, 32, 20
V5P_TOKENS = 4 * 0.6 * 459e12 / (6 * 6.74e9)


def cache_task(folder: str, lengths: np.ndarray, shards: int = 8) -> str:
    """A task, and its cache as SeqIO lays it out."""
    # Only its cache is ever read.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dialogues", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=30, help="a round")
    args = parser.parse_args()
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

        ((wall, cpu),) = timing.wall_and_cpu(args.rounds, read)
    filled = float(np.mean(used))
    tokens = args.batches * ROWS * LENGTH * filled
    padded = lengths[: len(lengths) // ROWS * ROWS].reshape(-1, ROWS)
    print(f"not padding: packed {filled:.3f}, ", end="")
    print(f"padded to the longest of {ROWS} {padded.sum() / padded.max(1).sum() / ROWS:.3f}")
    print(f"million tokens/s: {tokens / wall / 1e6:.2f} wall, {tokens / cpu / 1e6:.2f} CPU time")
    print(f"a v5p host eats {V5P_TOKENS:,.0f} tokens/s: {V5P_TOKENS * cpu / tokens:.1%} of a core")


if __name__ == "__main__":
    main()
