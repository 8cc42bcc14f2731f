"""Packed batches, and exact resumption after a restart."""

import json
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from speechgpt_jax.data.pipeline import load_batches, load_held_out
from speechgpt_jax.errors import UserError
from tasks import mixtures, modality_adaptation, speech_instruct
from tests.data.packed_texts import load_once
from tests.data.synthetic_corpus import task_on

pytestmark = pytest.mark.slow

ROWS, LENGTH = 4, 192
GOLDEN = str(Path(__file__).parent.parent / "testdata" / "golden")


@pytest.fixture(scope="module")
def mixture(corpus):
    """Two tasks."""
    return seqio.Mixture(
        "test_mixture", [(task_on(corpus, "demo_asr"), 2), (task_on(corpus, "demo_tts"), 1)]
    )


@pytest.fixture(scope="module")
def task(corpus):
    return task_on(corpus, "demo_text_to_text")


def batches_of(provider, **kwargs):
    options = {"batch_size": ROWS, "sequence_length": LENGTH, **kwargs}
    return load_batches(provider, "train", **options)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def examples_in(batch):
    """Features of each packed example."""
    for row in zip(*(batch[f"decoder_{k}"] for k in KEYS)):
        row = dict(zip(KEYS, row))
        for segment in range(1, row["segment_ids"].max() + 1):
            yield {key: value[row["segment_ids"] == segment] for key, value in row.items()}


KEYS = ("target_tokens", "input_tokens", "loss_weights", "segment_ids", "positions")


def test_batches_have_the_decoder_features(mixture):
    batch = next(batches_of(mixture))
    assert sorted(batch) == sorted(f"decoder_{key}" for key in KEYS)
    assert all(v.shape == (ROWS, LENGTH) and v.dtype == np.int32 for v in batch.values())
    vocabulary = mixture.output_features["targets"].vocabulary
    human = vocabulary.tokenizer.token_to_id("[Human]")
    for example in examples_in(batch):
        targets, inputs = example["target_tokens"], example["input_tokens"]
        assert inputs[0] == vocabulary.bos_id and targets[-1] == vocabulary.eos_id
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        np.testing.assert_array_equal(example["positions"], np.arange(len(targets)))
        start = int(np.argmax(targets == human))
        assert start > 0
        np.testing.assert_array_equal(example["loss_weights"], np.arange(len(targets)) >= start)


def test_restored_batches_continue_exactly(mixture):
    batches = batches_of(mixture, seed=3)
    for _ in range(7):
        next(batches)
    position = batches.state()
    expected = [next(batches) for _ in range(12)]  # well into the next epochs
    restarted = batches_of(mixture, seed=3)
    next(restarted)
    restarted.restore(position)
    for batch in expected:
        assert_same(next(restarted), batch)
    assert restarted.state() != position


def test_saving_does_not_change_the_batches(task):
    undisturbed, saved = batches_of(task), batches_of(task)
    for _ in range(3):
        saved.state()
        assert_same(next(saved), next(undisturbed))


def test_seeds_shuffle_differently(task):
    a, b = next(batches_of(task, seed=0)), next(batches_of(task, seed=1))
    assert (a["decoder_target_tokens"] != b["decoder_target_tokens"]).any()


def test_a_position_of_other_data_is_refused(task, corpus):
    position = batches_of(task).state()
    with pytest.raises(ValueError, match="another input pipeline"):
        batches_of(task_on(corpus, "demo_modality_adaptation")).restore(position)


def test_hosts_share_the_data(task):
    def read(**kwargs):
        batches, seen = batches_of(task, **kwargs), set()
        for _ in range(30):
            seen |= {tuple(e["target_tokens"].tolist()) for e in examples_in(next(batches))}
        return seen

    whole, first, second = read(), read(num_readers=2), read(num_readers=2, readers=[1])
    assert len(whole) == 60 and first | second == whole and not first & second


def test_another_number_of_hosts_continues_exactly(task):
    def hosts(number):
        return [
            batches_of(task, batch_size=1, readers=readers, num_readers=4)
            for readers in np.split(np.arange(4), number)
        ]

    def next_batch(hosts):
        batches = [next(host) for host in hosts]
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}

    two = hosts(2)
    next_batch(two)
    positions = two[0].state() | two[1].state()
    expected = [next_batch(two) for _ in range(2)]
    for number in (1, 4):
        others = hosts(number)
        for host in others:
            host.restore(positions)
        for batch in expected:
            assert_same(next_batch(others), batch)


@pytest.mark.parametrize(
    ("name", "converter"),
    [
        ("demo_text_to_text", seqio.PrefixLMFeatureConverter),
        ("demo_modality_adaptation", seqio.LMFeatureConverter),
    ],
)
def test_packed_features_are_those_of_seqio(corpus, name, converter):
    task = task_on(corpus, name)
    lengths = dict.fromkeys(task.output_features, LENGTH)
    dataset = task.get_dataset(lengths, "test", shuffle=False)
    reference = {
        tuple(e["decoder_target_tokens"][e["decoder_target_tokens"] > 0].tolist()): e
        for e in converter(pack=False, bos_id=1)(dataset, lengths).as_numpy_iterator()
    }
    (batch, *_) = load_once(task, "test", batch_size=ROWS, sequence_length=LENGTH)
    for example in examples_in(batch):
        size = len(example["target_tokens"])
        expected = reference[tuple(example["target_tokens"].tolist())]
        for key in ("input_tokens", "loss_weights"):
            np.testing.assert_array_equal(example[key], expected[f"decoder_{key}"][:size])


def test_units_are_concatenated_and_cut(corpus):
    task = task_on(corpus, "demo_modality_adaptation")
    batch = next(batches_of(task))
    assert (batch["decoder_segment_ids"] == 1).all() and (batch["decoder_loss_weights"] == 1).all()
    assert (batch["decoder_input_tokens"][:, 0] == 1).all()
    stream = [
        token
        for b in load_once(task, "test", batch_size=ROWS, sequence_length=LENGTH)
        for e in examples_in(b)
        for token in e["target_tokens"].tolist()
    ]
    assert stream.count(task.output_features["targets"].vocabulary.encode("<sosp>")[0]) == 60


def test_own_files(tmp_path):
    dialogues = tmp_path / "dialogues.jsonl"
    rows = [
        {"prefix": "Be kind.\n", "plain_text": f"[Human]: {'ha ' * i}<eoh> [SpeechGPT]: no<eoa> "}
        for i in range(40)
    ]
    dialogues.write_text("".join(json.dumps(row) + "\n" for row in rows))
    units = tmp_path / "units.txt"
    units.write_text("".join(f"<sosp><{i}><7><eosp>\n" for i in range(200)))
    names = (
        speech_instruct.dialogue_lines("test_dialogues", {"train": str(dialogues)}, GOLDEN),
        modality_adaptation.unit_lines({"train": str(units)}, GOLDEN, "test_units"),
    )
    for name in names:
        batches = batches_of(name)
        next(batches)
        position = batches.state()
        expected = next(batches)
        restarted = batches_of(name)
        restarted.restore(position)
        assert_same(next(restarted), expected)


def test_positions_are_small(tmp_path):
    """Under 1 MB for lines of 400 units, which take 5 MB."""
    units = np.random.default_rng(0).integers(0, 1000, (2000, 400))
    lines = ("<sosp>" + "".join(f"<{unit}>" for unit in line) + "<eosp>\n" for line in units)
    (tmp_path / "units.txt").write_text("".join(lines))
    name = modality_adaptation.unit_lines({"train": f"{tmp_path}/*"}, GOLDEN, "test_positions")
    batches = batches_of(name, sequence_length=1024)
    next(batches)
    (position,) = batches.state().values()
    assert len(position) < 1e6


def test_mistakes_are_named(corpus):
    with pytest.raises(ValueError, match=r"task 'demo_asrr' is unknown; did you mean demo_asr"):
        batches_of("demo_asrr")
    with pytest.raises(UserError, match=r"s3://bucket/cached can't be read: .* not implemented"):
        load_batches(
            "demo_asr", "train", batch_size=1, sequence_length=9, cache_dir="s3://bucket/cached"
        )
    with pytest.raises(ValueError, match="demo_tts has no split 'human'; it has test, train"):
        load_batches("demo_tts", "human", batch_size=1, sequence_length=64)


def test_a_damaged_file_of_another_source_is_one_line(task, tmp_path):
    file = tmp_path / "d.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(tf.train.Example().SerializeToString())
    file.write_bytes(file.read_bytes()[:-2])
    source = seqio.TFExampleDataSource({"train": str(file)}, task.source.feature_description)
    damaged = task.replace(source=source, shuffle_buffer_size=1)
    with pytest.raises(UserError, match=r"^The data can't be read: truncated record"):
        next(batches_of(damaged))


def write_dialogues(file, count):
    row = {"prefix": "", "plain_text": "[Human]: hi<eoh> [SpeechGPT]: %d<eoa> "}
    lines = [json.dumps(row) % i + "\n" for i in range(count)]
    file.write_text("".join(lines))


@pytest.mark.parametrize("files", [1, 8])
def test_fewer_records_than_readers(tmp_path, files):
    """Five records, in one file or beside empty files: every reader has batches and resumes."""
    write_dialogues(tmp_path / "d-0.jsonl", 5)
    for i in range(1, files):
        write_dialogues(tmp_path / f"d-{i}.jsonl", 0)
    name = f"test_few_{files}"
    speech_instruct.dialogue_lines(name, {"train": str(tmp_path / "d-*")}, GOLDEN)
    options = {"batch_size": 1, "num_readers": 8, "readers": (0, 7)}
    batches = batches_of(name, **options)
    batch = next(batches)
    assert (batch["decoder_segment_ids"].max(1) > 1).all()
    position, expected = batches.state(), next(batches)
    restarted = batches_of(name, **options)
    restarted.restore(position)
    assert_same(next(restarted), expected)


def test_a_direction_that_no_dialogue_has_is_one_line(tmp_path):
    write_dialogues(tmp_path / "d.jsonl", 5)
    files = {"train": str(tmp_path / "d.jsonl")}
    none = speech_instruct.dialogue_lines("test_none", files, GOLDEN, "speech_to_speech")
    some = speech_instruct.dialogue_lines("test_some", files, GOLDEN, "text_to_text")
    for name in (none, mixtures.mix("test_none_mixed", [some, none], [9, 1])):
        with pytest.raises(UserError, match=r"has no example.* `direction`"):
            next(batches_of(name))


def test_held_out_examples_come_once_and_in_the_same_rows(mixture, task):
    batches = list(load_held_out(task, "train", batch_size=ROWS, sequence_length=LENGTH))
    assert all(batch["decoder_target_tokens"].shape == (ROWS, LENGTH) for batch in batches)
    examples = [tuple(e["target_tokens"]) for batch in batches for e in examples_in(batch)]
    # Without shuffling and packing, each example that fits a row comes once.
    dataset = task.get_dataset(
        {"inputs": LENGTH, "targets": LENGTH}, "train", shuffle=False, trim_output_features=False
    )
    expected = [(*e["inputs"], *e["targets"]) for e in dataset.as_numpy_iterator()]
    assert sorted(examples) == sorted(e for e in expected if len(e) <= LENGTH)
    padding = batches[-1]["decoder_segment_ids"].sum(1) == 0
    assert not batches[-1]["decoder_loss_weights"][padding].any()

    again = load_held_out(task, "train", batch_size=ROWS, sequence_length=LENGTH, num_batches=2)
    for a, b in zip(again, batches[:2], strict=True):
        assert_same(a, b)
    (mixed,) = load_held_out(
        mixture, "train", batch_size=ROWS, sequence_length=LENGTH, num_batches=1
    )
    assert mixed["decoder_loss_weights"].any()
    with pytest.raises(UserError, match="has no split 'validation'"):
        next(load_held_out(task, "validation", batch_size=ROWS, sequence_length=LENGTH))
    with pytest.raises(UserError, match="examples of the split fits into 2 tokens"):
        next(load_held_out(task, "train", batch_size=ROWS, sequence_length=2))
