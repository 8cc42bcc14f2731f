"""Files of records: formats, shards, and messages about bad records."""

import gzip
import json
import logging
import re

import pytest
import seqio
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from speechgpt_jax.data.records import check_dialogues, check_texts, check_unit_text
from speechgpt_jax.data.sources import RecordFiles
from speechgpt_jax.errors import UserError

FIELDS = ("prefix", "plain_text")
GOOD = {"prefix": "Be kind.\n", "plain_text": "[Human]: <sosp><5> <9><eosp><eoh> [SpeechGPT]: é"}


def dialogues(files, on_error="stop"):
    return RecordFiles({"train": str(files)}, FIELDS, check_dialogues(1000), on_error)


def unit_text(files, on_error="stop"):
    return RecordFiles({"train": str(files)}, ("units",), check_unit_text(1000), on_error)


def read(source, **kwargs):
    return list(source.get_dataset("train", **{"shuffle": False, **kwargs}).as_numpy_iterator())


def rows(*texts):
    return "".join(json.dumps(GOOD | {"plain_text": text}) + "\n" for text in texts)


def example(record):
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
        for key, text in record.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def numbers(field):
    feature = {field: tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_jsonl(file, records):
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    file.write_bytes(gzip.compress(lines) if file.suffix == ".gz" else lines)


def write_tfrecord(file, records):
    with tf.io.TFRecordWriter(str(file), "GZIP" if str(file).endswith(".gz") else "") as writer:
        for record in records:
            writer.write(example(record))


def write_array_record(file, records):
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(example(record))
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.jsonl", write_jsonl),
        ("d-00000-of-00001.jsonl.gz", write_jsonl),
        ("d.tfrecord-00000-of-00001", write_tfrecord),
        ("d.tfrecord.gz", write_tfrecord),
        ("d.array_record", write_array_record),
    ],
)
def test_formats(tmp_path, name, write):
    records = [GOOD | {"prefix": str(i)} for i in range(150)]
    write(tmp_path / name, records)
    read_back = read(dialogues(tmp_path / "d*"))
    assert [{k: v.decode() for k, v in record.items()} for record in read_back] == records


def test_unit_text_as_lines_and_as_lists(tmp_path):
    (tmp_path / "u.txt").write_text("<sosp><1><2><eosp>\n<sosp><3><eosp>\n")
    (tmp_path / "u.jsonl").write_text('{"path": "a", "units": [1, 2]}\n{"units": [3]}\n')
    expected = [{"units": b"<sosp><1><2><eosp>"}, {"units": b"<sosp><3><eosp>"}]
    assert read(unit_text(tmp_path / "u.txt")) == read(unit_text(tmp_path / "u.jsonl")) == expected


def test_true_is_no_unit(tmp_path):
    (tmp_path / "u.jsonl").write_text('{"units": [true, false]}\n')
    with pytest.raises(UserError, match=r"`units` is \[true, false\], not text"):
        read(unit_text(tmp_path / "u.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_files_of_uneven_number(tmp_path, hosts):
    for file in range(5):
        numbered = [f"[Human] {file} {record}" for record in range(file + 1)]
        (tmp_path / f"d-{file}.jsonl").write_text(rows(*numbered))
    source = dialogues(tmp_path / "d-*")
    shares = [
        {record["plain_text"] for record in read(source, shard_info=seqio.ShardInfo(i, hosts))}
        for i in range(hosts)
    ]
    whole = [record["plain_text"] for record in read(source, shuffle=True)]
    assert len(whole) == len(set(whole)) == sum(map(len, shares)) == 15
    assert set().union(*shares) == set(whole)


@pytest.mark.slow
def test_every_epoch_is_shuffled_and_whole(tmp_path):
    (tmp_path / "d.jsonl").write_text(rows(*(f"[Human] {i}" for i in range(30))))

    def shuffled():
        dataset = dialogues(tmp_path / "d.jsonl").get_dataset("train", shuffle=True, seed=1)
        return [record["plain_text"] for record in dataset.repeat(2).as_numpy_iterator()]

    texts = shuffled()
    assert sorted(texts[:30]) == sorted(texts[30:]) == sorted(set(texts))
    assert texts[:30] != texts[30:] and texts == shuffled()


def test_no_good_record_is_an_error_also_when_bad_ones_are_skipped(tmp_path):
    (tmp_path / "d.jsonl").write_text("oops\n")
    with pytest.raises(ValueError, match=r"None of the records can be used: .*line 1: not JSON"):
        read(dialogues(tmp_path / "d.jsonl", "skip"))


BAD = {
    "too deep": ("[" * 100_000 + "\n", "not JSON: "),
    "no JSON": ("oops\n", "not JSON: Expecting value"),
    "a list": ("[1]\n", "not a JSON object"),
    "no plain_text": ('{"prefix": ""}\n', "no `plain_text`"),
    "a number": ('{"prefix": "", "plain_text": 5}\n', "`plain_text` is 5, not text"),
    "half a character": ('{"prefix": "", "plain_text": "\\ud800"}\n', "not UTF-8 text"),
    "no role": (rows("hello"), r"no \[Human\] in its `plain_text`"),
    "out of range": (rows("[Human] <sosp><5><1000><eosp>"), "a unit that is none of <0> to <999>"),
    "unclosed": (rows("[Human] <sosp><5><eoh>"), "<sosp> unclosed"),
    "text in speech": (rows("[Human] <sosp><5> a<eosp>"), "<sosp> unclosed, or followed by"),
    "no units": (rows("[Human] <sosp> <eosp>"), "speech without units"),
    "a long integer": ("9" * 5000 + "\n", "not JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named(tmp_path, name):
    bad, message = BAD[name]
    file = tmp_path / "d.jsonl"
    file.write_text(rows("[Human] 1", "[Human] 2") + bad + rows("[Human] 3"))
    with pytest.raises(ValueError, match=rf"d\.jsonl, line 3: {message}.* 1 of 4 records"):
        read(dialogues(file))


@pytest.mark.parametrize("value", ["NaN", "-Infinity", str(2**70), '"\\ud800"'])
def test_other_fields_hold_whatever_python_writes(tmp_path, value):
    record = f'{{"score": {value}, "prefix": "", "plain_text": "[Human] 1"}}\n'
    (tmp_path / "d.jsonl").write_text(record)
    assert [row["plain_text"] for row in read(dialogues(tmp_path / "d.jsonl"))] == [b"[Human] 1"]


@pytest.mark.slow
def test_bad_records_are_skipped_counted_and_listed(tmp_path, caplog):
    for name in ("a", "b"):
        bad = "".join(bad for bad, _ in BAD.values())
        (tmp_path / f"{name}.jsonl").write_text(bad + rows("[Human] " + name))
    (tmp_path / "c.jsonl").write_text("")
    with caplog.at_level(logging.WARNING, "speechgpt_jax"):
        read_back = read(dialogues(tmp_path / "*.jsonl", "skip"))
    assert [record["plain_text"] for record in read_back] == [b"[Human] a", b"[Human] b"]
    assert f"Left out {2 * len(BAD)} of {2 * len(BAD) + 2} records" in caplog.text
    assert "b.jsonl, line 4: no `plain_text`" in caplog.text
    assert "c.jsonl has no records" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"", r"The files of split 'train' have no records, such as .*d\.jsonl"),
        ("d.jsonl", b"\xef\xbb\xbf \n\n", r"split 'train' have no records"),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0), r"split 'train' have no records"),
        ("d.jsonl", bytes(range(255, 0, -1)), r"d\.jsonl, line 1: not UTF-8 text"),
        ("d.tfrecord", b"no records " * 9, r"d\.tfrecord is no tfrecord file, or damaged"),
        ("d.tfrecord.gz", b"no records " * 9, r"d\.tfrecord\.gz is no tfrecord file, or damaged"),
        ("d.array_record", b"no records " * 9, r"d\.array_record is no array_record file"),
        ("d.csv", b"a,b", r"d\.csv: expected \.jsonl, \.txt, \.tfrecord or \.array_record"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(dialogues(tmp_path / "d*"))


def test_records_of_another_kind(tmp_path):
    write_tfrecord(tmp_path / "d.tfrecord", [GOOD, {"text": "hello"}])
    with pytest.raises(ValueError, match="record 2: no `prefix`"):
        read(dialogues(tmp_path / "d.tfrecord"))
    (tmp_path / "u.txt").write_text("<sosp><1><eosp>\nhello\n")
    with pytest.raises(ValueError, match="line 2: not <sosp>, units and <eosp>"):
        read(unit_text(tmp_path / "u.txt"))
    (tmp_path / "u.jsonl").write_text('{"units": [1]}\n{"units": []}\n')
    with pytest.raises(ValueError, match="line 2: speech without units"):
        read(unit_text(tmp_path / "u.jsonl"))


def test_blank_texts(tmp_path):
    blank = [" ", "\xa0\n", "\u3000", "\u200b\ufeff", "\0"]
    lines = [json.dumps({"question": text, "answer": "a"}) for text in (*blank, "\u200ba")]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    source = RecordFiles({"train": str(tmp_path / "q*")}, ("question", "answer"), check_texts())
    with pytest.raises(ValueError, match=r"line 1: `question` is blank\. 5 of 6 records are bad"):
        read(source)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"No file matches .*nothing\*"):
        read(dialogues(tmp_path / "nothing*"))
    with pytest.raises(ValueError, match="on_error must be 'stop' or 'skip', got 'ignore'"):
        dialogues(tmp_path, "ignore")
    (tmp_path / "d.jsonl").write_text(rows("[Human]"))
    (tmp_path / "d.txt").write_text("a\n")
    with pytest.raises(ValueError, match="Files of one split have one format"):
        read(dialogues(tmp_path / "d.*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d.tfrecord", "d.tfrecord.gz", "d.array_record"])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"no example", "not a tf.train.Example"),
        (example({"text": "hello"}), "no `prefix`"),
        (numbers("prefix"), "`prefix` is not one text"),
        (b"", "no `prefix`"),
    ],
)
def test_a_bad_example_is_named_and_the_others_are_read(tmp_path, caplog, name, record, message):
    good = example(GOOD)
    if name.endswith("array_record"):
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
    else:
        writer = tf.io.TFRecordWriter(str(tmp_path / name), "GZIP" if "gz" in name else "")
    for written in (good, good, record, good):
        writer.write(written)
    writer.close()
    with pytest.raises(UserError, match=rf"{name}, record 3: {message}\. 1 of 4 records"):
        read(dialogues(tmp_path / name))
    with caplog.at_level(logging.WARNING, "speechgpt_jax"):
        assert len(read(dialogues(tmp_path / name, "skip"))) == 3
    assert f"record 3: {message}" in caplog.text


@pytest.mark.slow
def test_blank_lines_and_byte_order_marks_are_skipped(tmp_path):
    """Only newlines end a line; other separators stay in the text."""
    text = "[Human] a\u2028b\x85c\u2029d"
    line = json.dumps(GOOD | {"plain_text": text}, ensure_ascii=False)
    (tmp_path / "d.jsonl").write_text(f"\ufeff\n{line}\r\n \t\n\u2028\n{line}\n\n", newline="")
    found = read(dialogues(tmp_path / "d.jsonl"))
    assert [record["plain_text"].decode() for record in found] == [text] * 2
    (tmp_path / "u.txt").write_text("\ufeff<sosp><1><2><eosp>\n\n<sosp><3><eosp>")
    assert len(read(unit_text(tmp_path / "u.txt"))) == 2
    (tmp_path / "d.jsonl").write_text(f"\n{line}\n\noops\n")
    with pytest.raises(UserError, match=r"d\.jsonl, line 4: not JSON.* 1 of 2 records are bad"):
        read(dialogues(tmp_path / "d.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_jsonl, write_tfrecord, write_array_record])
@pytest.mark.parametrize("gz", [False, True])
def test_an_empty_file_among_others_has_no_records(tmp_path, write, gz):
    if gz and write is write_array_record:
        return
    suffix = write.__name__.removeprefix("write_") + (".gz" if gz else "")
    write(tmp_path / f"a.{suffix}", [GOOD, GOOD])
    (tmp_path / f"b.{suffix}").write_bytes(b"")
    if write is not write_array_record:
        write(tmp_path / f"c.{suffix}", [])
    assert len(read(dialogues(tmp_path / f"*.{suffix}"))) == 2
    hosts = [seqio.ShardInfo(i, 2) for i in range(2)]
    source = dialogues(tmp_path / f"[ab].{suffix}")
    assert [len(read(source, shuffle=True, shard_info=host)) for host in hosts] == [2, 0]


@pytest.mark.parametrize("pattern", ["s3://bucket/units-*.jsonl", "hdfs://host/units.jsonl"])
def test_a_file_system_that_tensorflow_lacks_is_named(pattern):
    with pytest.raises(UserError, match=rf"{re.escape(pattern)} can't be read: .* not implemented"):
        dialogues(pattern).list_shards("train")


def test_a_tokenizer_without_units_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(rows(GOOD["plain_text"]))
    source = RecordFiles({"train": f"{tmp_path}/a.jsonl"}, FIELDS, check_dialogues(0))
    with pytest.raises(UserError, match="line 1: a unit that is no token of the tokenizer"):
        read(source)
