"""Tables of recordings and of other rows are read in every common form."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_jax import files, manifests
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import parse_rows, read_rows


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
    (row,) = manifests.read_manifest(tmp_path / "train.tsv")
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
        ("a.tsv", "path\na\tb\n", r"a\.tsv:2: expected 1 cells \(path\), got 2"),
        ("a.tsv", "path\n\n\na\tb\n", r"a\.tsv:4: expected 1 cells \(path\), got 2"),
        ("a.tsv", "\n\npath\tpath\n", r"a\.tsv:3: two columns are called 'path'"),
        ("a.tsv", "\n/root\n\na\t-1\n", r"a\.tsv:4: .*, samples being a whole number, got"),
        ("a.tsv", "Path\tText\na\tb\n", r"path is missing; the row has 'Path', 'Text'\."),
        ("a.tsv", "path,text\na,b\n", r"path is missing; the row has 'path,text'\."),
        ("a.csv", "path;text\na;b\n", r"path is missing; the row has 'path;text'\."),
        ("a.jsonl", "{}", r"path is missing; the row has no fields\."),
        ("a.tsv", "path\ttext\ra\tb\r", r"a\.tsv:1: .*; a line that ends with a carriage return"),
        (
            "a.csv",
            f"path\n{131_073 * 'a'}\n",
            r"a\.csv:2: .*131072.*; close its quotes, or .* JSONL",
        ),
        *(
            ("a.tsv", f"/root\na\t{samples}\n", r"a\.tsv:2: .*, samples being a whole number, got")
            for samples in ("-1", "16000.0", 5000 * "9")
        ),
        (
            "a.tsv",
            "/root\na\t5\nb\n",
            r"a\.tsv:3: expected `path<TAB>samples`, .* whole number, got 'b'",
        ),
    ],
)
def test_errors_name_the_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / name, ("path",))


def test_manifests_without_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match=r"a\.jsonl can't be read .*expected a table"):
        manifests.read_manifest(path)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"a\.jsonl has no rows"):
        manifests.read_manifest(path)
    path.write_text('{"path": "/a.wav", "split": "dev"}\n{"path": "gs://b/c.wav"}\n')
    with pytest.raises(UserError, match=r"has no rows of split 'train'; it has dev\."):
        manifests.read_manifest(path, "train")
    assert manifests.read_manifest(path, "dev") == [{"path": "/a.wav", "split": "dev"}]
    assert [row["path"] for row in manifests.read_manifest(path)] == ["/a.wav", "gs://b/c.wav"]
    path.write_text('{"path": "/a.wav"}\n')
    with pytest.raises(UserError, match="has no rows of split 'train'; its rows have no `split`"):
        manifests.read_manifest(path, "train")


def test_paths_follow_the_file_that_names_them(tmp_path):
    row = {"path": "wavs/a.wav", "reference": "wavs/b.wav", "text": "hi"}
    (tmp_path / "voice").mkdir()
    manifests.write_jsonl(tmp_path / "voice" / "m.jsonl", [row, {"path": "gs://b/c.wav"}])
    rows = manifests.read_manifest(tmp_path / "voice" / "m.jsonl")
    assert rows[0] == {name: f"{tmp_path}/voice/{row[name]}" for name in manifests.PATHS} | {
        "text": "hi"
    }
    manifests.write_manifest(tmp_path / "m.jsonl", rows)
    written = [row.fields for row in manifests.read_rows(tmp_path / "m.jsonl")]
    assert written[0] == {name: f"voice/{row[name]}" for name in manifests.PATHS} | {"text": "hi"}
    assert written[1] == {"path": "gs://b/c.wav"}
    assert manifests.read_manifest(tmp_path / "m.jsonl") == rows


def test_a_missing_field_says_where_it_comes_from():
    with pytest.raises(UserError, match=r"a.wav has no text; expected path, text\.$"):
        manifests.check_fields([{"path": "a.wav"}], ("path", "text"))
    with pytest.raises(UserError, match=r"no units; .* Units and durations come from tools.extr"):
        manifests.check_fields([{"path": "a.wav"}], ("path", "units"))
