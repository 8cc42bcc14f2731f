"""Files are written whole or not at all."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from etils import epath

from speechgpt_jax import files, manifests
from speechgpt_jax.errors import UserError
from speechgpt_jax.local_copies import local_copy
from tests import local_bucket

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


@pytest.mark.parametrize("writer", [files.whole_file, files.whole_folder])
def test_a_failure_leaves_no_new_folders(writer, tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old/a", "old/new/a", "one/two/a"):
        with pytest.raises(ZeroDivisionError), writer(str(tmp_path / name)):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


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


def test_files_in_the_deepest_folders_are_sent_first(tmp_path):
    new = epath.Path(tmp_path / "new")
    names = ["done", "a/done", "b/1", "b/2", "b/c/1", "b/c/2"]
    sent = []

    def send(file):
        (new / file).write_text("sent")
        sent.append(len(file.parts))

    files.transfer({pathlib.PurePath(name): new / name for name in names}, send)
    assert sent == [3, 3, 2, 2, 2, 1]
    assert all((new / name).read_text() == "sent" for name in names)


def test_nothing_is_sent_after_a_failure_below(tmp_path):
    new = epath.Path(tmp_path / "new")
    targets = {pathlib.PurePath(name): new / name for name in ["done", "a/1", "a/2"]}
    sent = []

    def send(file):
        sent.append(file.name)
        if file.name == "1":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.transfer(targets, send)
    assert sorted(sent) == ["1", "2"]


def test_a_bucket(tmp_path):
    with local_bucket.below(tmp_path):
        manifests.write_jsonl("gs://bucket/new/rows.jsonl", [{"path": "a.wav"}])
        assert manifests.read_manifest("gs://bucket/new/rows.jsonl") == [
            {"path": "gs://bucket/new/a.wav"}
        ]
        with files.whole_folder("gs://bucket/model") as unfinished:
            (unfinished / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"gs://bucket/model/config\.json exists"):
            files.refuse_existing("gs://bucket/model", "config.json")
        assert files.names_in("gs://bucket") == ["model", "new"]
        assert files.names_in("gs://bucket/nothing") == []
        found = [path.name for path in files.files_below("gs://bucket")]
        assert found == ["config.json", "rows.jsonl"]
        with local_copy("gs://bucket/model") as copy:
            assert json.loads((copy / "config.json").read_text()) == {}
        (tmp_path / "bucket" / "new" / "gone").symlink_to("nowhere")
        failed = pytest.raises(UserError, match=r"gs://bucket/new can't be copied to .*TMPDIR")
        with failed, local_copy("gs://bucket/new"):
            pytest.fail("The block was run.")
    assert json.loads((tmp_path / "bucket/model/config.json").read_text()) == {}
    assert sorted(os.listdir(tmp_path / "bucket")) == ["model", "new"]
