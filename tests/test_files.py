"""Files are written whole or not at all; tables are read in every common form."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from etils.epath import gpath
from etils.epath import testing as epath_testing
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_jax import files
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import parse_rows, read_rows

ROOT = Path(__file__).parent.parent


# ---- the user's cache ----------------------------------------------------------------------------


def test_the_users_cache_is_a_folder_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert files.user_cache() == tmp_path / "caches" / "speechgpt_jax"
    assert files.user_cache().is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", __file__)
    assert files.user_cache() is None


# ---- writing -------------------------------------------------------------------------------------


def run(program: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_file_appears_only_if_its_block_succeeds(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.whole_file(path) as unfinished:
        assert unfinished.suffix == ".txt" and not path.exists()
        unfinished.write_text("one")
    assert path.read_text() == "one"
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as unfinished:
        unfinished.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one" and os.listdir(path.parent) == ["a.txt"]


def test_a_folder_appears_only_if_its_block_succeeds(tmp_path):
    path = tmp_path / "new" / "model"
    with files.whole_folder(path) as unfinished:
        (unfinished / "a").write_text("one")
        assert not path.exists()
    with files.whole_folder(path) as unfinished:
        (unfinished / "b").write_text("two")
    with (
        pytest.raises(UserError, match="model/a exists; name another folder"),
        files.whole_folder(path) as unfinished,
    ):
        (unfinished / "a").write_text("three")
        (unfinished / "c").write_text("three")
    assert sorted(os.listdir(path)) == ["a", "b"] and (path / "a").read_text() == "one"
    assert os.listdir(path.parent) == ["model"]


KILLED = """
import os, signal, sys
from speechgpt_jax import files
with getattr(files, sys.argv[1])(sys.argv[2]) as unfinished:
    (unfinished / "a" if sys.argv[1] == "whole_folder" else unfinished).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_a_kill_leaves_nothing_under_the_final_name(tmp_path, kind):
    done = run(KILLED, kind, tmp_path / "output")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "output").exists()


# A limit of the size of files stands for a full disk.
FULL_DISK = """
import resource, signal, sys
import numpy as np, safetensors.numpy, soundfile
from speechgpt_jax import files
from speechgpt_jax.errors import one_line_errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
kind, folder = sys.argv[1:]
with one_line_errors():
    if kind == "bytes":
        files.write_bytes(f"{folder}/output", bytes(10_000))
    if kind == "tensors":
        with files.whole_folder(f"{folder}/output") as unfinished:
            safetensors.numpy.save_file({"x": np.zeros(10_000)}, unfinished / "x.safetensors")
"""


@pytest.mark.parametrize("kind", ["bytes", "tensors"])
def test_a_full_disk_is_one_line(tmp_path, kind):
    done = run(FULL_DISK, kind, tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"Error: {tmp_path}/output can't be written: ")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", [files.whole_file, files.whole_folder])
@pytest.mark.parametrize("path", ["/proc/no/output", "{tmp_path}/file/output", "{tmp_path}/other"])
def test_a_path_that_can_not_be_written_is_reported_before_the_work(tmp_path, kind, path):
    (tmp_path / "file").touch()
    if kind is files.whole_file:
        (tmp_path / "other").mkdir()
    else:
        (tmp_path / "other").touch()
    before = sorted(os.listdir(tmp_path))
    unwritable = pytest.raises(UserError, match=r"(output|other) can't be written: ")
    with unwritable, kind(path.format(tmp_path=tmp_path)):
        pytest.fail("The block was run.")
    assert sorted(os.listdir(tmp_path)) == before


def test_errors_of_other_files_are_raised_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole_file(tmp_path / "output"):
        (tmp_path / "input").read_text()
    with pytest.raises(zipfile.BadZipFile), files.whole_folder(tmp_path / "output"):
        zipfile.ZipFile(io.BytesIO(b"no zip"))


def test_names_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("é" * 120 + ".json")
    files.write_text(path, "{}")
    assert files.read_json(path) == {}


def test_a_bucket(tmp_path, monkeypatch):
    """Writes to gs://, which a local folder replaces."""
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)

    def forward(original, *arguments, **kwargs):
        local = (str(x).replace("gs:/", str(tmp_path)) for x in arguments)
        return original(*local, **kwargs)

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "open", "remove", "rename")
    with epath_testing.mock_epath(**dict.fromkeys((*names, "replace", "rmtree"), forward)):
        files.write_jsonl("gs://bucket/new/rows.jsonl", [{"path": "a.wav"}])
        assert files.read_manifest("gs://bucket/new/rows.jsonl") == [
            {"path": "gs://bucket/new/a.wav"}
        ]
        with files.whole_folder("gs://bucket/model") as unfinished:
            (unfinished / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"gs://bucket/model/config\.json exists"):
            files.refuse_existing("gs://bucket/model", "config.json")
    assert json.loads((tmp_path / "bucket/model/config.json").read_text()) == {}
    assert sorted(os.listdir(tmp_path / "bucket")) == ["model", "new"]


# ---- reading -------------------------------------------------------------------------------------


def rows_of(content: str | bytes, name: str, required=()) -> list[dict]:
    data = content.encode() if isinstance(content, str) else content
    return [row.fields for row in parse_rows(io.BytesIO(data), name, required)]


TEXT = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]))
ROWS = st.lists(TEXT.filter(str.strip), min_size=1)


@given(ROWS)
def test_tables_are_read_as_they_were_written(texts):
    """Quotes, tabs, line ends and every kind of white space are part of a text."""
    rows = [{"path": "a.wav", "text": text} for text in texts]
    for name, delimiter in (("rows.tsv", "\t"), ("rows.csv", ",")):
        for line_end in ("\n", "\r\n"):
            table = io.StringIO(newline="")
            writer = csv.writer(table, delimiter=delimiter, lineterminator=line_end)
            writer.writerows([("path", "text"), *(row.values() for row in rows)])
            assert rows_of(table.getvalue(), name, ("path", "text")) == rows
    for escaped in (True, False):
        lines = (json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        assert rows_of("".join(lines), "rows.jsonl", ("path", "text")) == rows


SPACES = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\xa0"


def test_only_newlines_end_lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(f"\ufeffone{SPACES}line\r\n\n  \n\u2028\ntwo".encode())
    assert files.read_lines(path) == [f"one{SPACES}line", "two"]
    line = json.dumps({"text": f"one{SPACES.replace(SPACES[3:8], '')}"}, ensure_ascii=False)
    assert rows_of(f"\ufeff\n{line}\r\n \n", "a.jsonl") == [json.loads(line)]


def test_cells_of_spreadsheet_programs():
    table = (
        'path\ttext\t\r\n"a b.wav"\t"she said ""yes"""\t\r\n\r\n\t\t\r\nc.wav\tit\'s 5" wide\r\n'
    )
    assert rows_of("\ufeff" + table, "a.TSV") == [
        {"path": "a b.wav", "text": 'she said "yes"'},
        {"path": "c.wav", "text": "it's 5\" wide"},
    ]
    assert rows_of("path \t text\na\t\n", "a.tsv") == [{"path": "a", "text": ""}]
    assert rows_of("path\na\nb\n", "a.tsv") == [{"path": "a"}, {"path": "b"}]
    assert rows_of("\n", "a.tsv") == rows_of("", "a.csv") == rows_of("path\n", "a.tsv") == []


def test_layout_of_fairseq(tmp_path):
    table = '/data/LibriSpeech\nb/1 2.flac\t32000\n\nb/"3".flac\t16000\r\n'
    assert rows_of(table, "train.tsv", ("path",)) == [
        {"path": "/data/LibriSpeech/b/1 2.flac", "samples": 32000},
        {"path": '/data/LibriSpeech/b/"3".flac', "samples": 16000},
    ]
    (tmp_path / "train.tsv").write_text("wavs\na.wav\t5\n")
    (row,) = files.read_manifest(tmp_path / "train.tsv")
    assert row == {"path": f"{tmp_path}/wavs/a.wav", "samples": 5}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"path": "a"}\n\noops\n', r"a\.jsonl:3: 'oops' is not a JSON object"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: expected a JSON object, got '\[1\]'"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: '\[+' is not a JSON object"),
        ("a.jsonl", '{"path": 5}', r"a\.jsonl:1: path must be text, got 5"),
        ("a.jsonl", '{"wav": "a"}', r"a\.jsonl:1: path is missing"),
        ("a.jsonl", b'{"path": "\xe9"}', r"a\.jsonl:1: not UTF-8 .*; save it as UTF-8"),
        ("a.tsv", "path\ta".encode("utf-16"), r"a\.tsv:1: not UTF-8"),
        ("a.tsv", "path\ttext\na\n", r"a\.tsv:2: expected 2 cells \(path, text\), got 1: 'a'"),
        ("a.tsv", "path\ttext\na\tb\tc\n", r"a\.tsv:2: expected 2 cells .*, got 3"),
        ("a.tsv", "path\ttext\ttext\n", r"a\.tsv:1: two columns are called 'text'"),
        ("a.csv", ",path\n0,a\n", r"a\.csv:1: column 1 has no name"),
        ("a.tsv", 'path\ttext\na\t"b\nc\td\n', r"a\.tsv:2: not a row of cells .*quotes is"),
        ("a.tsv", 'path\ttext\n\na\t"b" c\n', r"a\.tsv:3: not a row of cells"),
        ("a.tsv", "text\nhello\n", r"a\.tsv:2: path is missing"),
        ("a.tsv", "/root\na\t5\nb\n", r"a\.tsv:3: expected `path<TAB>samples`, got 'b'"),
    ],
)
def test_errors_name_the_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / name, ("path",))


def test_manifests_without_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match=r"a\.jsonl can't be read .*expected a table"):
        files.read_manifest(path)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"a\.jsonl has no rows"):
        files.read_manifest(path)
    path.write_text('{"path": "/a.wav", "split": "dev"}\n{"path": "gs://b/c.wav"}\n')
    with pytest.raises(UserError, match="has no rows of split 'train'; it has None, dev"):
        files.read_manifest(path, "train")
    assert files.read_manifest(path, "dev") == [{"path": "/a.wav", "split": "dev"}]
    assert [row["path"] for row in files.read_manifest(path)] == ["/a.wav", "gs://b/c.wav"]
