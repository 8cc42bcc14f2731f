"""Packing of whole examples into rows."""

import logging

import numpy as np
import pytest

from speechgpt_jax.data.packing import (
    Packer,
    concatenate,
    from_bytes,
    pack,
    separate,
    to_bytes,
)


def example(*targets, inputs=()):
    return {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}


def rows_of(packer, sizes):
    for size in sizes:
        packer.add(example(*range(1, size + 1)))
        while packer.is_full:
            yield packer.fill_row()
    while len(packer):
        yield packer.fill_row()


def test_a_row():
    row = pack([example(8, 2, inputs=[7]), example(2, inputs=[9])], length=6, bos_id=1, unk_id=0)
    assert {key: value.tolist() for key, value in row.items()} == {
        "decoder_target_tokens": [7, 8, 2, 9, 2, 0],
        "decoder_input_tokens": [1, 7, 8, 1, 9, 0],
        "decoder_loss_weights": [0, 1, 1, 0, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 0, 1, 0],
    }
    assert all(value.dtype == np.int32 for value in row.values())


def test_a_row_without_bos():
    """The first token of each example is only an input; id 0 is a token like others."""
    examples = [example(8, 2, inputs=[7]), example(0, 4, 2)]
    row = pack(examples, length=6, bos_id=None, unk_id=None)
    assert {key: value.tolist() for key, value in row.items()} == {
        "decoder_target_tokens": [8, 2, 4, 2, 0, 0],
        "decoder_input_tokens": [7, 8, 0, 4, 0, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 0, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 0, 0],
        "decoder_positions": [0, 1, 0, 1, 0, 0],
    }


def test_the_unknown_piece_has_no_loss():
    row = pack([example(8, 0, 2)], length=3, bos_id=1, unk_id=0)
    assert row["decoder_loss_weights"].tolist() == [1, 0, 1]


def test_little_is_padding_at_the_lengths_of_speech_dialogues():
    lengths = np.random.default_rng(0).lognormal(np.log(180), 0.6, 3000)
    packer = Packer(512)
    rows = list(rows_of(packer, np.clip(lengths, 1, 512).astype(int)))
    used = [sum(len(e["targets"]) for e in row) for row in rows]
    assert max(used) <= 512
    assert sum(map(len, rows)) == 3000
    assert np.mean(used) / 512 > 0.97


def test_a_pool_is_restored_for_rows_of_another_length():
    before = Packer(8)
    for size in (3, 8, 5, 2):
        before.add(example(*range(1, size + 1)))
    longer, shorter = Packer(16), Packer(5)
    for packer in (longer, shorter):
        packer.restore(before.state())
    assert [len(e["targets"]) for e in longer.fill_row()] == [3, 8, 5]
    assert [len(e["targets"]) for e in shorter.fill_row()] == [3, 2]
    assert (shorter.taken, shorter.dropped) == (4, 1)
    assert (longer.taken, longer.dropped) == (4, 0)


def test_too_long_is_dropped_and_counted(caplog):
    packer = Packer(4)
    with caplog.at_level(logging.WARNING, "speechgpt_jax"):
        assert [len(row) for row in rows_of(packer, [3, 5, 4, 9])] == [1, 1]
    assert (packer.taken, packer.dropped) == (4, 2)
    assert "Dropped 2 of 4 examples (50.0 %) longer than 4 tokens" in caplog.text


def test_nothing_fits():
    with pytest.raises(ValueError, match="None of the first 1000 examples fits into 4 tokens"):
        list(rows_of(Packer(4), [5] * 1000))


def test_state_restores_pool_and_counts():
    sizes = np.random.default_rng(0).integers(1, 20, 50)
    packer, again = Packer(32), Packer(32)
    for size in sizes:
        packer.add(example(*range(size)))
    packer.fill_row()
    again.restore(from_bytes(to_bytes(packer.state())))
    assert (again.taken, again.dropped) == (50, 0)
    while len(packer):
        for a, b in zip(packer.fill_row(), again.fill_row(), strict=True):
            np.testing.assert_array_equal(a["targets"], b["targets"])
    assert not len(again)


def test_separate_inverts_concatenate():
    again = separate(concatenate([example(1, 2, inputs=[4]), example(3)]))
    assert [{k: v.tolist() for k, v in e.items()} for e in again] == [
        {"inputs": [4], "targets": [1, 2]},
        {"inputs": [], "targets": [3]},
    ]
    assert separate(concatenate([])) == []


@pytest.mark.parametrize(("length", "vocab_size"), [(8192, 33_024), (32_768, 152_000)])
def test_a_full_pool_of_long_examples_is_small(length, vocab_size):
    packer, rng = Packer(length), np.random.default_rng(0)
    while not packer.is_full:
        packer.add(example(*rng.integers(vocab_size, size=rng.integers(length))))
    assert len(packer) > 5 and len(to_bytes(packer.state())) < 1e6
