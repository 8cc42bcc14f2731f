"""Where examples come from, as SeqIO data sources."""

from collections.abc import Mapping
from pathlib import Path

import seqio
import tensorflow as tf

DEMO_CORPUS = Path(__file__).parents[1] / "assets" / "corpus"

_ALL = 1 << 30


class RecordsInMemory(seqio.DataSource):
    """A small set of tf.train.Example records, read whole from GZIP TFRecord files.

    It shuffles positions, not records: the order is a full permutation, another one each epoch,
    and the position saved with a checkpoint stays small.
    """

    def __init__(
        self,
        split_to_file: Mapping[str, str],
        feature_description: Mapping[str, tf.io.FixedLenFeature | tf.io.RaggedFeature],
    ):
        super().__init__(splits=tuple(split_to_file), performs_internal_shuffling=True)
        self._split_to_file = dict(split_to_file)
        self.feature_description = dict(feature_description)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [self._split_to_file[split]]

    @tf.autograph.experimental.do_not_convert
    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        records = read_records(self._split_to_file[split])
        positions = tf.data.Dataset.range(len(records))
        if shard_info:
            positions = positions.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            positions = positions.shuffle(len(records), seed=seed)
        return positions.map(
            lambda i: tf.io.parse_single_example(records[i], self.feature_description),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def read_records(file: str) -> tf.Tensor:
    """All records [N] of a GZIP TFRecord file."""
    if not tf.io.gfile.exists(file):
        raise ValueError(f"No records at {file}.")
    dataset = tf.data.TFRecordDataset(file, compression_type="GZIP")
    try:
        return next(iter(dataset.batch(_ALL)))
    except StopIteration:
        raise ValueError(f"{file} has no records.") from None
    except tf.errors.OpError as error:
        raise ValueError(f"{file} is not a GZIP TFRecord file: {error.message}") from error
