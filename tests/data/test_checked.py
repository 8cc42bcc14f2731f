"""Checked files, which are remembered."""

import logging
import os

import numpy as np
import pytest

from speechgpt_jax.data.blocks import file_format
from speechgpt_jax.data.checked import BLANK, check_files
from speechgpt_jax.errors import UserError

TXT = file_format(["a.txt"])


@pytest.fixture
def files(tmp_path):
    names = [tmp_path / "a.txt", tmp_path / "b.txt"]
    names[0].write_text("good\nbad\n\ngood\n" * 100)
    names[1].write_text("good\n")
    return list(map(str, names))


class Problems:
    """Finds that the record `bad` is bad, and counts the records that it was asked about."""

    def __init__(self):
        self.count = 0

    def __call__(self, records):
        self.count += len(records)
        return np.array([{b"bad": b"it is bad", b"": BLANK}.get(r, b"") for r in records], object)


def check(files, problems, name="a check"):
    return list(check_files(files, TXT, name, problems))


def test_problems_are_counted_and_the_first_are_listed(files):
    a, b = check(files, Problems())
    assert (a.num_records, a.num_bad, len(a.problems)) == (300, 100, 20)
    assert a.problems[:2] == ["line 2: it is bad", "line 6: it is bad"]
    assert [block.num_records for block in a.blocks] == [128, 128, 128, 16]
    assert (b.num_records, b.num_bad, b.problems) == (1, 0, [])


def test_a_file_is_read_once(files):
    first, again = Problems(), Problems()
    expected = check(files, first)
    assert check(files, again) == expected
    assert (first.count, again.count) == (401, 0)
    assert check(files, again, "another check") == expected and again.count == 401


def test_a_changed_file_is_read_again(files):
    check(files, Problems())
    with open(files[1], "a") as file:
        file.write("bad\n")
    again = Problems()
    assert [found.num_bad for found in check(files, again)] == [100, 1] and again.count == 2
    os.utime(files[0], ns=(0, 0))  # Another content of the same size.
    check(files, again)
    assert again.count == 402


def test_a_damaged_file_is_an_error_and_not_remembered(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(b"junk" * 9)
    for _ in range(2):
        (found,) = check_files([str(file)], file_format(["a.txt.gz"]))
        assert isinstance(found, UserError) and "no txt file, or damaged" in str(found)


def test_a_folder_that_cannot_be_written_is_warned_of_once(files, tmp_path, caplog):
    (tmp_path / ".checked").write_text("a file")
    with caplog.at_level(logging.WARNING, "speechgpt_jax"):
        assert [found.num_records for found in check(files, Problems())] == [300, 1]
    assert caplog.text.count("Each start checks the files anew") == 1
