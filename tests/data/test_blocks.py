"""Blocks of files, and the shuffled reading of them."""

import gzip

import numpy as np
import pytest
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from speechgpt_jax.data.blocks import IN_ORDER, Block, Windows, file_format, scan
from speechgpt_jax.errors import UserError

RECORDS = [b"%d " % i * (i % 7) for i in range(1000)]


def write(file):
    if file.name.endswith("array_record"):
        writer = ArrayRecordWriter(str(file), "group_size:1")
    elif "tfrecord" in file.name:
        writer = tf.io.TFRecordWriter(str(file), "GZIP" if file.suffix == ".gz" else "")
    else:
        data = b"\r\n".join(RECORDS)
        file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
        return
    for record in RECORDS:
        writer.write(record)
    writer.close()


def blocks_of(file, format_):
    start, found = 0, []
    for end, records in scan(str(file), format_):
        found.append(Block(str(file), start, end, len(records)))
        start = end
    return found


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl.gz", "a.tfrecord", "a.tfrecord.gz", "a.array_record"]
)
def test_every_part_of_an_epoch_can_be_read_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr("speechgpt_jax.data.blocks._WINDOW_BLOCKS", 3)
    file = tmp_path / name
    write(file)
    format_ = file_format([str(file)])
    blocks = blocks_of(file, format_)
    assert len(blocks) == 8 and sum(block.num_records for block in blocks) == 1000
    windows = Windows(blocks, format_)
    assert windows.read(IN_ORDER, 0, 2000) == RECORDS
    first, second = windows.read(1, 0, 1000), windows.read(2, 0, 1000)
    assert sorted(first) == sorted(second) == sorted(RECORDS)
    assert first != second != RECORDS
    other = Windows(blocks, format_)
    for start in (999, 380, 0, 385, 700):
        assert other.read(1, start, start + 20) == first[start : start + 20]


def test_neighbours_come_from_everywhere(tmp_path):
    blocks = [Block(str(tmp_path / "a.txt"), 2 * i, 2 * i + 2, 1) for i in range(4000)]
    (tmp_path / "a.txt").write_bytes(b"".join(b"%c\n" % (97 + i // 1000) for i in range(4000)))
    windows = Windows(blocks, file_format(["a.txt"]))
    letters = windows.read(5, 0, 80)
    assert all(letters.count(letter) > 8 for letter in (b"a", b"b", b"c", b"d"))


@pytest.mark.parametrize("name", ["a.txt", "a.tfrecord"])
def test_a_file_that_changes_is_named(tmp_path, name):
    file = tmp_path / name
    write(file)
    windows = Windows(blocks_of(file, file_format([name])), file_format([name]))
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match=rf"{name} (was changed|can't be read)"):
        windows.read(0, 0, 1000)


def test_large_records_make_small_blocks(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\n".join([b"x" * (1 << 19)] * 5))
    assert [block.num_records for block in blocks_of(file, file_format(["a.txt"]))] == [2, 2, 1]
    assert np.diff([b.start for b in blocks_of(file, file_format(["a.txt"]))]).min() > 1 << 20
