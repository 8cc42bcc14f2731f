"""Records in the format of the shipped corpus, with random texts and units."""

from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data.sources import RecordsInMemory

WORDS = ("what", "is", "two", "plus", "three", "red", "dog", "cat", "big", "monday", "rain")
SPEAKERS = ("slt", "rms", "kal16")


def _example(**features) -> bytes:
    def feature(value):
        if isinstance(value, str):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

    features = tf.train.Features(feature={k: feature(v) for k, v in features.items()})
    return tf.train.Example(features=features).SerializeToString()


def _write(file: Path, records: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(file), "GZIP") as writer:
        for record in records:
            writer.write(record)


def write_corpus(folder: Path, size: int = 60) -> None:
    """Writes `size` utterances and dialogues per split."""
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(3, 9)))

    def units(text):
        return rng.integers(0, 200, 5 * len(text.split())).tolist()

    for split in ("train", "test", "unheard_voice", "human"):
        utterances = []
        for i in range(size):
            said = text()
            utterances.append(
                _example(
                    id=f"u{i}",
                    text=said,
                    speaker=SPEAKERS[i % 3],
                    topic="free_order" if i % 2 else "sums",
                    units=units(said),
                )
            )
        _write(folder / f"utterances-{split}.tfrecord.gz", utterances)
    for split in ("train", "test", "unheard_voice"):
        dialogues = []
        for i in range(size):
            question, answer = text(), text()
            dialogues.append(
                _example(
                    id=f"d{i}",
                    question=question + "?",
                    answer=answer + ".",
                    question_units=units(question),
                    answer_units=units(answer),
                )
            )
        _write(folder / f"dialogues-{split}.tfrecord.gz", dialogues)


def task_on(folder: Path, name: str) -> seqio.Task:
    """A registered demo task that reads the corpus in `folder`."""
    task = seqio.TaskRegistry.get(name)
    files = {
        split: str(folder / Path(task.source.list_shards(split)[0]).name) for split in task.splits
    }
    source = RecordsInMemory(files, task.source.feature_description)
    return task.replace(source=source)
