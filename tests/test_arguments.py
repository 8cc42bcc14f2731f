"""Argument types accept and reject the right texts; every mistake is one line."""

import ast
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_jax import arguments
from speechgpt_jax.arguments import IllegalValue
from speechgpt_jax.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (arguments.positive_int, "8", 8),
        (arguments.at_least(0), "0", 0),
        (arguments.at_least(2, at_most=3), "3", 3),
        (arguments.finite_float(), "-1e-3", -1e-3),
        (arguments.finite_float(at_least=0, at_most=1), "1", 1.0),
        (arguments.positive_float, ".5", 0.5),
        (arguments.name, "stage-1.b_2", "stage-1.b_2"),
        (arguments.nonempty, "two words", "two words"),
        (arguments.host_and_port, "node-0.local:8476", "node-0.local:8476"),
        (arguments.host_and_port, "[::1]:1", "[::1]:1"),
        (arguments.existing_file, __file__, __file__),
        (arguments.existing_folder, str(ROOT), str(ROOT)),
        (arguments.existing_local_file, __file__, __file__),
    ],
)
def test_values(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (arguments.positive_int, ["0", "-1", "2147483648", "1.5", "ten", "", "nan", "inf"]),
        (arguments.at_least(0), ["-1", "one"]),
        (arguments.at_least(2, at_most=3), ["1", "4"]),
        (arguments.finite_float(), ["nan", "inf", "-inf", "1e999", "fast", ""]),
        (arguments.finite_float(at_least=0, at_most=1), ["-0.1", "1.1", "nan"]),
        (arguments.positive_float, ["0", "-0.0", "1e-50", "1e39", "inf", "nan"]),
        (arguments.name, ["", "my run", "-x", "a/b", "ä"]),
        (arguments.nonempty, ["", " ", "\udcff"]),
        (arguments.host_and_port, ["", "host", "host:", ":80", "host:0", "host:65536", "a b:80"]),
        (arguments.existing_path, ["", "/no/such/file", "zz://bucket/file", "http://host/file"]),
        (arguments.location, ["", "\udcff", "zz://bucket/run"]),
        (arguments.existing_file, ["", "/no/such/file", str(ROOT)]),
        (arguments.existing_folder, ["", "/no/such/folder", __file__]),
        (arguments.existing_local_file, ["", "/no/such/file", str(ROOT), "gs://bucket/file"]),
        (arguments.seed, ["-1", "4294967296", "0.5"]),
        (
            arguments.output_folder,
            ["", "zz://bucket/run", __file__, f"{__file__}/run", "/proc/no/run"],
        ),
        (arguments.output_file, ["", str(ROOT), f"{__file__}/a.wav", "/proc/no/a.wav"]),
    ],
)
def test_illegal_values(parse, texts):
    for text in texts:
        with pytest.raises(IllegalValue):
            parse(text)


@pytest.mark.slow  # It imports TensorFlow, by which URLs are read.
@pytest.mark.parametrize("url", ["s3://bucket/run", "az://bucket/run", "hf://name/run"])
def test_urls_of_file_systems_that_are_known_but_not_installed(url):
    for parse in (arguments.location, arguments.existing_path, arguments.new_folder):
        with pytest.raises(IllegalValue, match=f"{url}: its file system can't be read here"):
            parse(url)


def test_messages_say_what_was_expected_and_what_was_given():
    with pytest.raises(IllegalValue, match="expected a whole number, at least 1, got 'ten'"):
        arguments.positive_int("ten")
    with pytest.raises(
        IllegalValue, match=r"expected a finite number, above 0 and at most 2, got 'nan'"
    ):
        arguments.finite_float(above=0, at_most=2)("nan")


def test_outputs_may_be_new(tmp_path):
    assert arguments.output_folder(f"{tmp_path}/a/b") == f"{tmp_path}/a/b"
    assert arguments.output_file(f"{tmp_path}/a/b.wav") == f"{tmp_path}/a/b.wav"
    assert arguments.output_folder("gs://bucket/run") == "gs://bucket/run"
    assert not list(tmp_path.iterdir()), "checking makes nothing"


def parser():
    parser = arguments.Parser("A tool.")
    parser.add_argument("--steps", type=arguments.positive_int, required=True)
    parser.add_argument("--rate", type=arguments.finite_float(at_least=0), default=math.pi)
    return parser


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps=ten"], "argument --steps: expected a whole number, at least 1, got 'ten'"),
        (
            ["--steps=1", "--rate=nan"],
            "argument --rate: expected a finite number, at least 0, got 'nan'",
        ),
        ([], "arguments are required: --steps"),
        (["--step=1"], "arguments are required: --steps"),
        (["--steps=1", "--stepz=2"], "unrecognized arguments: --stepz=2"),
        (["--steps"], "expected one argument"),
    ],
)
def test_argparse(given, message):
    assert parser().parse_args(["--steps=3"]).rate == math.pi
    with pytest.raises(UserError, match=message):
        parser().parse_args(given)


def test_help_names_defaults():
    tool = arguments.Parser("A tool.")
    tool.add_argument("--steps", default=3, help="optimizer steps")
    tool.add_argument("--rate", default=0.1, help="default: that of the run")
    tool.add_argument("--name", help="name of the run")
    tool.add_argument("--dry_run", action="store_true", help="only print")
    lines = [" ".join(line.split()) for line in tool.format_help().splitlines()]
    assert "--steps STEPS optimizer steps (default: 3)" in lines
    assert "--rate RATE default: that of the run" in lines
    assert "--name NAME name of the run" in lines and "--dry_run only print" in lines


@pytest.mark.parametrize("file", sorted((ROOT / "tools").glob("*.py")), ids=lambda file: file.stem)
def test_every_argument_has_a_help(file):
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name == "add_argument" or (name == "add" and str(call.args[0].value)[:2] == "--"):
                assert "help" in [keyword.arg for keyword in call.keywords], call.args[0].value


def test_subcommands_too():
    tool = arguments.Parser("A tool.")
    create = tool.add_subparsers(required=True, dest="step").add_parser("create")
    create.add_argument("--name", type=arguments.name)
    with pytest.raises(UserError, match="argument --name: expected a name"):
        tool.parse_args(["create", "--name=my run"])
    with pytest.raises(UserError, match="invalid choice: 'creat'"):
        tool.parse_args(["creat"])


MAIN = """
from absl import flags
from speechgpt_jax import arguments

STEPS = arguments.define("steps", arguments.positive_int, 400, "Optimizer steps.")
RUN = flags.DEFINE_string("run", None, "A run.", required=True)
COUNT = flags.DEFINE_integer("count", 1, "A count.")

def main():
    print(STEPS.value, RUN.value)

arguments.run_with_flags(main)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)

    def start(*given):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(tmp_path / "main.py"), *given]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return start


@pytest.mark.slow
def test_absl(start):
    assert start("--run=a").stdout == "400 a\n"
    assert start("--run=a", "--steps=3").stdout == "3 a\n"
    help_text = start("--help").stdout
    assert "--steps: Optimizer steps." in help_text
    assert "(default: '400')" in help_text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--run=a", "--steps=0"], "--steps=0: expected a whole number, at least 1, got '0'"),
        (["--run=a", "--count=many"], "--count=many: invalid literal"),
        (["--run=a", "--step=1"], "Unknown command line flag 'step'. Did you mean: steps ?"),
        (["--steps=3"], "--run is required."),
        (["--run=a", "more"], "unexpected argument 'more'"),
    ],
)
def test_absl_mistakes_are_one_line(start, given, message):
    process = start(*given)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments.app, "run", interrupted)
    for run in (lambda: arguments.run_with_flags(lambda: None), lambda: arguments.run(interrupted)):
        with pytest.raises(SystemExit) as raised:
            run()
        assert raised.value.code == 130


def test_keys_that_no_header_can_hold(monkeypatch):
    """They are refused without showing them."""
    for key, expected in [("", None), ("s3cret!~", "s3cret!~")]:
        monkeypatch.setenv("A_KEY", key)
        assert arguments.key_in("A_KEY") == expected
    for key in ("schlüssel", "a b", "a\n", "\udcff"):
        monkeypatch.setenv("A_KEY", key)
        with pytest.raises(UserError, match="A_KEY: expected a key of ASCII") as raised:
            arguments.key_in("A_KEY")
        assert key not in str(raised.value)
