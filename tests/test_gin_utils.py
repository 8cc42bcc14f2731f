"""Gin files and bindings: their values, and one line for every mistake."""

from pathlib import Path

import pytest

import gin
from speechgpt_jax import gin_utils
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.gin_utils import ConfigError
from speechgpt_jax.training.optimizer import AdamW
from tests import local_bucket

ROOT = Path(__file__).parent.parent

FILE = """
from __gin__ import dynamic_registration
from speechgpt_jax.training import optimizer

RATE = 1e-3
optimizer.AdamW.learning_rate = %RATE
optimizer.AdamW.schedule = 'linear'
"""

GUARDED = f"{FILE}optimizer.guarded.guard = @optimizer.Guard()\n"

AMBIGUOUS = """
from __gin__ import dynamic_registration
import json
import tomllib

json.load.cls = None
tomllib.load.parse_float = None
"""


def parse(tmp_path, text=FILE, bindings=()):
    (tmp_path / "a.gin").write_text(text)
    gin_utils.parse([str(tmp_path / "a.gin")], bindings)
    return gin_utils.call(AdamW)


def test_bindings_override_files(tmp_path):
    assert parse(tmp_path) == AdamW(1e-3, "linear")
    assert parse(tmp_path, bindings=["AdamW.b2 = 0.9"]) == AdamW(1e-3, "linear", b2=0.9)
    assert parse(tmp_path, bindings=["RATE = 2.0"]) == AdamW(2.0, "linear")


def test_the_operative_config_reproduces_the_values(tmp_path):
    config = parse(tmp_path, bindings=["AdamW.b2 = 0.9"])
    text = gin_utils.operative_config()
    assert "AdamW.clip_norm = 1.0" in text, "defaults are recorded too"
    assert parse(tmp_path, text) == config


def test_search_paths(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.gin").write_text(FILE)
    gin_utils.parse(["b.gin"], search_paths=[str(tmp_path / "elsewhere")])
    assert gin_utils.call(AdamW).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "bindings", "message"),
    [
        (
            FILE,
            ["AdamW.learning_rat = 1"],
            "learning_rat = 1: .*doesn't have a parameter",
        ),
        (FILE, ["AdamV.b2 = 1"], "AdamV.b2 = 1: No configurable matching 'AdamV'"),
        (FILE, ["RATES = 1"], "--gin.RATES = 1: no gin file defines the macro RATES"),
        (FILE, ["AdamW.b2 = (1"], r"--gin.AdamW.b2 = \(1: .*EOF"),
        (FILE, ["AdamW.b2 = @no()"], "No configurable matching reference '@no()'|@no"),
        (FILE + "RATE = %gin.REQUIRED", [], "RATE.* set to `%gin.REQUIRED` but not"),
        (FILE + "optimizer.AdamV.b2 = 1", [], r"AdamV.* In file .*a.gin"),
        (FILE + "optimizer.AdamW.b2 = %NO", [], "%NO is not set"),
        (FILE + "include 'gone.gin'", [], "Unable to open file: gone.gin"),
        (FILE, ["AdamW.learning_rat = 1"], r"Did you mean learning_rate\?"),
        (FILE, ["AdamV.b2 = 1"], r"Did you mean AdamW\?"),
        (FILE, ["Elsewhere.remat = 'full'"], "'Elsewhere'.* must import the module of a name"),
        (FILE, ["RATES = 1"], r"Did you mean RATE\?"),
        (FILE, ["AdamW.b2 = 'fast'"], "AdamW.b2 = 'fast': expected a finite number"),
        (FILE, ["AdamW.b2 = 1e999"], "AdamW.b2 = inf: expected a finite number"),
        (FILE, ["AdamW.b2 = None"], "AdamW.b2 = None: expected a finite number"),
        (FILE, ["AdamW.b2 = True"], "AdamW.b2 = True: expected a finite number"),
        (FILE, ["AdamW.schedule = 3"], "AdamW.schedule = 3: expected one of 'cosine', 'linear'"),
        (FILE, ["AdamW.schedule = 'step'"], "'step': expected one of 'cosine', 'linear'"),
        (
            FILE,
            ["RATE = 'fast'"],
            r"'fast' \(from %RATE\): expected a finite number",
        ),
        (FILE + "here/optimizer.AdamW.b2 = 'a'", [], "here/.*AdamW.b2 = 'a': expected a finite"),
        (FILE, ["here/AdamW.b2 = 0.5"], "here/.*AdamW is bound, but .* the scope here: leave"),
        (
            FILE + "optimizer.Guard.patience = 2.0",
            [],
            "patience = 2.0: expected a whole",
        ),
        (FILE, ["AdamW.b2 = @AdamW()"], r"AdamW.b2 = @AdamW\(\): expected a finite number\.$"),
        (GUARDED, ["guarded.guard = @Guard"], r"= @Guard: expected a Guard; write @Guard\(\)"),
        (GUARDED, ["guarded.guard = @AdamW()"], r"= @AdamW\(\): expected a Guard\.$"),
        (GUARDED, ["guarded.guard = [@Guard()]"], r"= \[@Guard\(\)\]: expected a Guard\.$"),
        (FILE + "from speechgpt_jax import gone", [], "gone"),
        (AMBIGUOUS, ["load.cls = 1"], "Ambiguous selector 'load', matches"),
        (FILE.replace("optimizer.AdamW.learning_rate = %RATE", ""), [], "learning_rate"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, bindings, message):
    with (
        pytest.raises(SystemExit, match=message) as stopped,
        one_line_errors(),
    ):
        parse(tmp_path, text, bindings)
    assert "\n" not in str(stopped.value)


def test_a_file_that_includes_itself(tmp_path):
    (tmp_path / "a.gin").write_text(f"include '{tmp_path}/b.gin'")
    (tmp_path / "b.gin").write_text(f"include '{tmp_path}/a.gin'")
    with pytest.raises(ConfigError, match=r"a.gin: the file includes itself, or includes a file"):
        gin_utils.parse([str(tmp_path / "a.gin")])


def test_a_main_without_a_gin_file():
    gin_utils.parse([])
    with pytest.raises(ConfigError, match=r"AdamW.learning_rate is not set: bind it in a gin file"):
        gin_utils.call(AdamW)
    assert gin_utils.call(AdamW, learning_rate=1.0) == AdamW(1.0)


def test_a_byte_order_mark_is_skipped(tmp_path):
    assert parse(tmp_path, "\ufeff" + FILE) == AdamW(1e-3, "linear")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding(tmp_path, encoding):
    (tmp_path / "a.gin").write_bytes(f"# é{FILE}".encode(encoding))
    with pytest.raises(ConfigError, match=r"a\.gin: not UTF-8 \(.*\); save it as UTF-8"):
        gin_utils.parse([str(tmp_path / "a.gin")])


def test_a_folder():
    with pytest.raises(ConfigError, match=r"expected a gin file, got the folder 'gin/runs'"):
        gin_utils.parse(["gin/runs"])


def test_files_on_a_bucket(tmp_path, monkeypatch):
    # Gin keeps search paths.
    monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", [*gin.config._LOCATION_PREFIXES])
    (tmp_path / "bucket").mkdir()
    recipe = "include 'rates.gin'\ninclude 'gs://bucket/schedules.gin'\n"
    (tmp_path / "bucket" / "a.gin").write_text("\ufeff" + recipe)
    head, _, schedule = FILE.rpartition("\noptimizer")
    (tmp_path / "bucket" / "rates.gin").write_text(head)
    (tmp_path / "bucket" / "schedules.gin").write_text(
        FILE.partition("RATE")[0] + f"optimizer{schedule}"
    )
    places = {"search_paths": ["gs://bucket/no", "gs://bucket"]}
    with local_bucket.below(tmp_path):
        gin_utils.parse(["gs://bucket/a.gin"], **places)
        assert gin_utils.call(AdamW) == AdamW(1e-3, "linear")
        with pytest.raises(ConfigError, match=r"Unable to open file: gs://bucket/none\.gin"):
            gin_utils.parse(["gs://bucket/none.gin"], **places)
        with pytest.raises(ConfigError, match=r"expected a file, got the folder 'gs://bucket'"):
            gin_utils.parse(["gs://bucket"], **places)
        (tmp_path / "bucket" / "rates.gin").write_text(head + "\noptimizer.AdamV.b2 = 1")
        with pytest.raises(ConfigError, match=r"AdamV.* In file .*gs://bucket/rates\.gin"):
            gin_utils.parse(["gs://bucket/a.gin"], **places)


def test_missing_file():
    with pytest.raises(ConfigError, match=r"Unable to open file: no.gin"):
        gin_utils.parse(["no.gin"])


def test_arguments_after_gin_are_bindings():
    argv = ["train", "--gin.a.steps=9", "--v=1", "--gin.a.start_from=runs/a=b", "--gin.M=%N"]
    rest, bindings = gin_utils.split_arguments(argv)
    assert rest == ["train", "--v=1"]
    assert bindings == ["a.steps = 9", "a.start_from = 'runs/a=b'", "M = %N"]
    lists = ["--gin.a.held_out=[@a.load(), @b/a.load]", "--gin.a.notes=[a@b]"]
    _, bindings = gin_utils.split_arguments(lists)
    assert bindings == ["a.held_out = [@a.load(), @b/a.load]", "a.notes = '[a@b]'"]
    with pytest.raises(ConfigError, match=r"write --gin\.NAME=VALUE"):
        gin_utils.split_arguments(["train", "--gin.train.steps"])


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        print(1 / 0)
    # A ValueError of another library says nothing about what the user did.
    with pytest.raises(ValueError), one_line_errors():
        int("nine")
