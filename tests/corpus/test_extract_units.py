"""Units of recordings: the same with any number of workers and after a kill; bad files listed."""

import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_jax.corpus import plan, shards, summary
from speechgpt_jax.corpus.extract_units import find_recordings, in_batches
from speechgpt_jax.corpus.extract_units import measure as measure_row
from speechgpt_jax.corpus.sound import load
from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import load_audio, save_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tests import processes
from tools import extract_units

CLIPS = sorted((DEMO_CORPUS / "clips").glob("*.flac"))[:9]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Nine recordings of 1 to 7 seconds, some of them in a subfolder."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "more [1]").mkdir()
    for i, clip in enumerate(CLIPS):
        folder_of_clip = folder / "more [1]" if i % 2 else folder
        save_audio(folder_of_clip / f"{i}.wav", np.tile(load_audio(clip), 1 + i % 2))
    return folder


def extract(source, hubert, output, *more):
    flags = {"input": source, "hubert": hubert, "output": output, "shard_size": 2}
    extract_units.main([*(f"--{name}={value}" for name, value in flags.items()), *more])


def shards_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("*-of-*.jsonl"))}


def rows_of(output: Path, kind: str = "units") -> list[dict]:
    files = sorted(output.glob(f"{kind}-*-of-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def extracted(recordings, small_hubert, tmp_path_factory):
    """Output of a run with one worker."""
    output = tmp_path_factory.mktemp("extracted")
    extract(recordings, small_hubert, output)
    return output


@pytest.mark.slow
def test_units_are_those_of_each_recording_alone(extracted, recordings, small_hubert):
    rows = rows_of(extracted)
    paths = [row["path"] for row in rows]
    assert paths == sorted(map(str, recordings.rglob("*.wav"))) and len(paths) == 9
    speech2unit = Speech2Unit.from_pretrained(small_hubert)
    for row in rows:
        wav = load_audio(row["path"])
        units, durations = speech2unit(wav)
        np.testing.assert_array_equal(row["units"], units)
        np.testing.assert_array_equal(row["durations"], durations)
        assert sum(row["durations"]) == speech2unit.hubert.config.num_frames(len(wav))


@pytest.mark.slow
def test_the_output_folder_holds_units_and_a_summary(extracted):
    names = [f"units-{i:05d}-of-00005.jsonl" for i in range(5)]
    others = ["histogram.png", "manifest.jsonl", "plan.json", "summary.tsv"]
    assert sorted(os.listdir(extracted)) == sorted(names + others)
    totals = summary.read_totals(str(extracted / "summary.tsv"))
    rows = rows_of(extracted)
    for measure, field in (("frames", "durations"), ("units", "units")):
        found = summary.histograms(totals)["units", measure]
        size = sum if field == "durations" else len
        assert sum(n * lines for n, lines in found.items()) == sum(size(r[field]) for r in rows)
    assert (extracted / "histogram.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_workers_write_the_same(extracted, recordings, small_hubert, tmp_path):
    workers = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    extract(recordings, small_hubert, tmp_path, *workers)
    assert shards_of(tmp_path) == shards_of(extracted)


@pytest.mark.slow
def test_a_foreign_shard_is_named(tmp_path):
    for line in ("oops", '{"path": "a.wav"}', "5"):
        (tmp_path / "units-00000-of-00001.jsonl").write_text(f"{line}\n")
        job = shards.Job("extract_units", ("units",), lambda: None, measure_row)
        with pytest.raises(shards.UserErrorInWorker) as raised:
            list(shards.MakeShard(job, str(tmp_path)).process(plan.Shard("a.jsonl", 0, 1)))
        with (
            pytest.raises(
                UserError, match=r"units-00000-of-00001\.jsonl has a line that extract_un"
            ),
            shards.unmarked_user_errors(),
        ):
            raise raised.value


def test_a_killed_run_resumes(extracted, recordings, small_hubert, tmp_path):
    source = tmp_path / "recordings"
    shutil.copytree(recordings, source)
    last = sorted(source.rglob("*.wav"))[4]
    kept = last.read_bytes()
    soundfile.write(last, np.zeros(1200 * 16_000), 16_000)  # It takes seconds.
    output = tmp_path / "units"
    flags = [f"--hubert={small_hubert}", f"--output={output}", "--shard_size=2"]
    command = ["tools.extract_units", f"--input={source}", *flags]
    process = processes.start(processes.run_module, *command, output=tmp_path)
    try:
        while len(made := sorted(output.glob("units-*"))) < 2 and process.is_alive():
            time.sleep(0.05)
        assert process.is_alive(), (tmp_path / "stderr").read_text()
    finally:
        process.kill()
        process.join()
    assert [path.name for path in made] == [f"units-0000{i}-of-00005.jsonl" for i in (0, 1)]
    assert not (output / "summary.tsv").exists()
    before = [path.stat().st_mtime_ns for path in made]
    # A kill may leave such a file; the other one is the user's.
    (output / f"units-00002-of-00005.jsonl.{'0' * 32}.part").write_text("{")
    (output / "film.mp4.part").touch()

    last.write_bytes(kept)
    extract(source, small_hubert, output)
    assert [path.stat().st_mtime_ns for path in made] == before
    assert [path.name for path in output.glob("*.part")] == ["film.mp4.part"]
    moved = {
        name: data.replace(str(source).encode(), str(recordings).encode())
        for name, data in shards_of(output).items()
    }
    assert moved == shards_of(extracted)


@pytest.mark.slow
def test_recordings_that_cannot_be_read_are_listed(recordings, small_hubert, tmp_path, capsys):
    good = sorted(recordings.glob("*.wav"))[0]
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("this is no sound")
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:30])
    save_audio(tmp_path / "short.wav", np.zeros(300, np.float32))
    soundfile.write(tmp_path / "huge.wav", np.full(16_000, 1e30), 16_000, "FLOAT")
    names = ["empty.wav", "text.flac", str(good), "huge.wav", "cut.wav", "short.wav", "missing.wav"]
    lines = [f"{name}\ttext {i}\tslt\n" for i, name in enumerate(names)]
    (tmp_path / "manifest.tsv").write_text("path\ttext\tspeaker\n" + "".join(lines))
    extract(tmp_path / "manifest.tsv", small_hubert, tmp_path / "units")

    (row,) = rows_of(tmp_path / "units")
    assert (row["path"], row["text"], row["speaker"]) == (str(good), "text 2", "slt")
    units, _ = Speech2Unit.from_pretrained(small_hubert)(load_audio(good))
    assert row["units"] == units.tolist()
    rejects = rows_of(tmp_path / "units", "rejects")
    names.remove(str(good))
    assert [row["path"] for row in rejects] == [str(tmp_path / name) for name in names]
    reasons = ["empty.wav is empty", "text.flac", "too large samples", "cut.wav", "300 samples"]
    reasons.append("No audio file at")
    for row, reason in zip(rejects, reasons):
        assert reason in row["reason"] and "\n" not in row["reason"]
    assert "Rejected rows: 6" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_may_reject_all_recordings(small_hubert, tmp_path):
    (tmp_path / "text.wav").write_text("this is no sound")
    extract(tmp_path, small_hubert, tmp_path / "units")
    assert rows_of(tmp_path / "units") == [] and len(rows_of(tmp_path / "units", "rejects")) == 1


@pytest.mark.slow
def test_an_output_is_not_resumed_with_other_input_or_settings(extracted, recordings, small_hubert):
    with pytest.raises(ValueError, match=r"was begun with different rows; name another folder"):
        extract(recordings / "more [1]", small_hubert, extracted)
    with pytest.raises(ValueError, match=r"was begun with shard_size 2, now it is 3"):
        extract(recordings, small_hubert, extracted, "--shard_size=3")
    with pytest.raises(ValueError, match=r"was begun with dtype 'float32', now it is 'bfloat16'"):
        extract(recordings, small_hubert, extracted, "--dtype=bfloat16")


@pytest.mark.parametrize("count", [4, 99_999, 100_000])
def test_the_number_of_shards_is_part_of_their_names(count):
    shard = plan.Shard("rows.jsonl", 0, count)
    job = shards.Job("test", ("units",), dict, len)
    assert plan.number_of_shards(job.file("units", "units", shard.number)) == count


def test_a_manifest_in_the_output_folder_is_not_replaced(small_hubert, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"path": "a.wav"}\n')
    with pytest.raises(UserError, match=r"manifest\.jsonl is the input, and the run's own"):
        extract(manifest, small_hubert, tmp_path)
    assert manifest.read_text() == '{"path": "a.wav"}\n'
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


@pytest.mark.parametrize("table", ["manifest.jsonl", "summary.tsv"])
def test_a_table_of_no_earlier_run_is_not_replaced(small_hubert, tmp_path, table):
    for name in (table, "subset.jsonl"):
        (tmp_path / name).write_text('{"path": "a.wav"}\n')
    with pytest.raises(UserError, match=rf"{table} exists and is not of an earlier run; name"):
        extract(tmp_path / "subset.jsonl", small_hubert, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([table, "subset.jsonl"])
    assert (tmp_path / table).read_text() == '{"path": "a.wav"}\n'


@pytest.mark.parametrize("output", [".", "in", "in/units"])
def test_recordings_are_found_wherever_the_output_is(tmp_path, output):
    for name in ("in/a.wav", "in/units/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows, _ = find_recordings(f"{tmp_path}/in", os.path.normpath(tmp_path / output))
    found = ["a.wav"] if output == "in/units" else ["a.wav", "units/b.wav"]
    assert [row["path"] for row in rows] == [f"{tmp_path}/in/{name}" for name in found]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "--input=.*nowhere does not exist; expected a folder or a manifest"),
        ("empty", "empty has no recording; give"),
        ("zz://bucket/folder", "zz://bucket/folder can't be reached: .*filesystem"),
        ("s3://bucket/folder", "s3://bucket/folder can't be read: .*boto3"),
        ("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl can't be read: .*boto3"),
        ("http://host/rows.jsonl", "http://host/rows.jsonl can't be reached: .*filesystem"),
        ("nowhere.jsonl", "There is no file .*nowhere.jsonl"),
        ("rows.jsonl", r"rows\.jsonl:2: path is missing"),
        ("cells.tsv", r"cells\.tsv:2: expected 2 cells"),
        ("others", r"others has no recording \(it has 2 \.txt, 1 hidden, 1 without a suffix\)"),
        ("none.jsonl", r"none\.jsonl has no rows; give"),
    ],
)
def test_unusable_inputs_are_refused_in_one_line(small_hubert, tmp_path, source, message):
    (tmp_path / "rows.jsonl").write_text('{"path": "a.wav"}\n{"wav": "b.wav"}\n')
    (tmp_path / "cells.tsv").write_text("path\ttext\nonly a path\n")
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    for name in ("a.txt", "B.TXT", ".DS_Store", "README"):
        (tmp_path / "others" / name).touch()
    with pytest.raises(UserError, match=message):
        extract(source if "://" in source else tmp_path / source, small_hubert, tmp_path / "units")
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize("url", ["http://host/a.wav", "file:///a.wav", "zz://a.wav"])
def test_a_url_that_cannot_be_reached_is_a_rejected_row(url):
    assert f"{url} can't be reached" in load(url)


def test_a_row_of_a_cloud_whose_library_is_missing_is_rejected():
    assert "Missing boto3" in load("s3://bucket/a.wav")


def test_links_that_are_not_followed_are_counted(tmp_path):
    for name in ("in", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    for name, target in (("b.wav", "elsewhere/a.wav"), ("more", "elsewhere"), ("c.wav", "gone")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    rows, skipped = find_recordings(f"{tmp_path}/in", f"{tmp_path}/out")
    assert [row["path"] for row in rows] == [f"{tmp_path}/in/a.wav", f"{tmp_path}/in/b.wav"]
    assert "2 files skipped: " in skipped
    assert "1 linked folder (give it as --input of its own)" in skipped
    assert "1 broken link" in skipped


@pytest.mark.slow
def test_names_that_are_no_utf_8(recordings, small_hubert, tmp_path, capsys):
    wav, folder = sorted(recordings.glob("*.wav"))[0], tmp_path / "in"
    folder.mkdir()
    for name, data in ((b"a\xe9.wav", wav.read_bytes()), (b"b\xe9.wav", b"x"), (b"c.\xe9", b"x")):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(data)
    extract(folder, small_hubert, tmp_path / "units")
    shown = capsys.readouterr().out
    assert r"1 file skipped: 1 .\udce9." in shown and r"in/b\udce9.wav is not readable" in shown
    [row] = rows_of(tmp_path / "units")
    assert row["path"] == f"{folder}/a\udce9.wav" and row["units"]
    np.testing.assert_array_equal(load_audio(row["path"]), load_audio(wav))


def test_a_pipe_is_rejected_unread(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    assert "a.wav is a folder, a pipe or a device; expected a file" in load(f"{tmp_path}/a.wav")


def test_a_flag_and_its_value_may_be_two_words():
    options = shards.pipeline_options(["--direct_num_workers", "2", "--streaming"])
    assert options.get_all_options()["direct_num_workers"] == 2


def test_checking_beams_options_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shards.pipeline_options([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [["--streaming", "extra"], ["extra"], ["--direct_num_workers", "2", "extra"], ["-x", "extra"]],
)
def test_a_word_that_is_no_flags_value_is_refused(words):
    with pytest.raises(UserError, match=r"unexpected argument '(extra|-x)'; --help shows"):
        shards.pipeline_options(words)


def test_a_misspelt_flag_is_named(recordings, small_hubert, tmp_path):
    with pytest.raises(ValueError, match="--hubbert is unknown"):
        extract(recordings, small_hubert, tmp_path / "units", "--hubbert=x")
    assert not (tmp_path / "units").exists()


def test_invalid_values_are_refused_in_one_line(recordings, small_hubert, tmp_path):
    (tmp_path / "file").touch()
    for flag, message in (
        ("--shard_size=0", "shard_size: expected a whole number, at least 1, got '0'"),
        ("--batch_seconds=nan", "batch_seconds: expected a whole number"),
        ("--dtype=float16", "dtype: invalid choice: 'float16'"),
        (f"--output={tmp_path}/file", "file is a file"),
        (
            "--direct_num_workers=two",
            "flags: argument --direct_num_workers: invalid int",
        ),
        ("extra", "unexpected argument 'extra'; --help shows"),
        ("--runner=Foo", "Beam can't start --runner=Foo: Unexpected pipeline runner"),
        ("--runner=DataflowRunner", "(?s)can't start --runner=DataflowRunner: .*option: proj"),
        ("--hubert=zz://bucket", "zz://bucket can't be reached"),
        ("--hubert=s3://bucket", "s3://bucket can't be read: .*boto3"),
    ):
        with pytest.raises(UserError, match=message):
            extract(recordings, small_hubert, tmp_path / "units", flag)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "kmeans.safetensors"])
def test_an_incomplete_hubert_is_refused_before_the_work(
    recordings, small_hubert, tmp_path, missing
):
    shutil.copytree(small_hubert, tmp_path / "hubert")
    (tmp_path / "hubert" / missing).unlink()
    with pytest.raises(UserError, match=rf"hubert has no {missing}; expected a folder of HuBERT"):
        extract(recordings, tmp_path / "hubert", tmp_path / "units")
    assert not (tmp_path / "units").exists()


@pytest.mark.slow
def test_files_that_are_no_recordings_are_counted_and_named(
    recordings, small_hubert, tmp_path, capsys
):
    wav = sorted(recordings.glob("*.wav"))[0].read_bytes()
    (tmp_path / ".Trash").mkdir()
    for name in ("a.WAV", "b.txt", "c.docx", "d.txt", "._a.wav", ".Trash/a.wav", "e"):
        (tmp_path / name).write_bytes(wav)
    extract(tmp_path, small_hubert, tmp_path / "units")
    extract(tmp_path, small_hubert, tmp_path / "units")  # Its own output is not among them.
    said = "6 files skipped: 2 hidden, 2 .txt, 1 .docx, 1 without a suffix."
    assert capsys.readouterr().out.count(said) == 4
    assert [row["path"] for row in rows_of(tmp_path / "units")] == [str(tmp_path / "a.WAV")]


@pytest.mark.slow
def test_fairseqs_manifests_are_read(recordings, small_hubert, tmp_path):
    wavs = sorted(recordings.glob("*.wav"))[:2]
    lines = [f"{wav.name}\t{len(load_audio(wav))}\n" for wav in wavs]
    (tmp_path / "train.tsv").write_text(f"{recordings}\n" + "".join(lines))
    extract(tmp_path / "train.tsv", small_hubert, tmp_path / "units")
    assert [row["path"] for row in rows_of(tmp_path / "units")] == list(map(str, wavs))


def test_a_folder_with_brackets_is_the_title_of_the_summary(capsys):
    summary.print_summary(summary.Totals({("units", "frames", 3): 2}), "/data [old]/units[/x]")
    assert "/data [old]/units[/x]" in capsys.readouterr().out


class Special(UserError):
    """A kind of UserError."""


@pytest.mark.parametrize("error", [UserError("this is\nnot 'that'\n\"é\""), Special("no [such]")])
def test_a_workers_user_error_is_raised_unchanged_and_not_logged(tmp_path, caplog, error):
    def make_worker():
        raise error

    with pytest.raises(UserError) as raised:
        run(make_worker, tmp_path)
    assert str(raised.value) == str(error)
    assert not [record for record in caplog.records if record.name.startswith("apache_beam")]


def test_a_workers_bug_is_no_user_error(tmp_path):
    def make_worker():
        raise KeyError("a bug") from UserError("not this")

    with pytest.raises(Exception, match="a bug") as raised:
        run(make_worker, tmp_path)
    assert not isinstance(raised.value, UserError)


def run(make_worker, folder):
    job = shards.Job("test", ("units",), make_worker, len)
    work = plan.write_plan([{"path": "a"}], "rows.jsonl", str(folder), 1, {})
    shards.run(job, work, str(folder), shards.pipeline_options([]))


def test_batches_keep_the_order_and_hold_no_more_than_asked():
    sound = [np.zeros(n) for n in (3, 4, 2, 9, 1)]
    items = [*sound[:2], "not readable", *sound[2:]]
    batches = list(in_batches(items, 8))
    assert [[len(x) for x in batch] for batch in batches] == [[3, 4, 12], [2], [9], [1]]
    assert all(a is b for a, b in zip(itertools.chain(*batches), items, strict=True))


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (7, 3), (6, 3), (2, 9)])
def test_a_plan_gives_every_row_to_one_shard(tmp_path, num_rows, size):
    rows = [{"text": "é" * i} for i in range(num_rows)]
    work = plan.write_plan(rows, "rows.jsonl", str(tmp_path), size, {})
    assert [row for shard in work for row in shard.read()] == rows
    assert [len(shard.read()) for shard in work[:-1]] == [size] * (len(work) - 1)
    assert [shard.index for shard in work] == list(range(-(-num_rows // size)))
