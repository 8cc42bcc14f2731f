"""Records held in memory."""

import pytest
import seqio
import tensorflow as tf

from speechgpt_jax.data.sources import RecordsInMemory

TEXT = {"text": tf.io.FixedLenFeature([], tf.string)}


@pytest.fixture
def source(corpus):
    return RecordsInMemory({"train": str(corpus / "utterances-train.tfrecord.gz")}, TEXT)


def texts(dataset):
    return [record["text"] for record in dataset.as_numpy_iterator()]


def test_order_follows_the_seed_and_changes_every_epoch(source):
    in_order = texts(source.get_dataset(shuffle=False))
    shuffled = texts(source.get_dataset(seed=1))
    assert sorted(shuffled) == sorted(in_order) and shuffled != in_order
    assert texts(source.get_dataset(seed=1)) == shuffled
    two_epochs = texts(source.get_dataset(seed=1).repeat(2))
    assert two_epochs[60:] != two_epochs[:60] == shuffled


@pytest.mark.slow
def test_shards_are_disjoint_and_whole(source):
    shards = [
        texts(source.get_dataset(shuffle=False, shard_info=seqio.ShardInfo(i, 7))) for i in range(7)
    ]
    whole = texts(source.get_dataset(shuffle=False))
    assert sorted(text for shard in shards for text in shard) == sorted(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No records at"), (b"", "has no records"), (b"junk" * 9, "not a GZIP TFRecord")],
)
def test_mistakes_are_named(tmp_path, content, message):
    file = tmp_path / "x.tfrecord.gz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RecordsInMemory({"train": str(file)}, TEXT).get_dataset()
