"""Illegal flags of the mains: one line, before JAX or TensorFlow are imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

# Prints the slow libraries that were imported when the program ends.
PROGRAM = """
import atexit, runpy, sys
slow = ("jax", "tensorflow", "seqio", "orbax.checkpoint")
atexit.register(lambda: print("imported:", [name for name in slow if name in sys.modules]))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


# Its libraries are there already, see `processes`.
EVALUATE = processes.run_module, "speechgpt_jax.evaluate"


def start(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


FILE = "pyproject.toml"


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        ("train", [], "--output_dir is required"),
        ("train", [f"--output_dir={FILE}"], f"can't be a folder: {ROOT / FILE} is a file"),
        ("train", ["--output_dir=/proc/run"], "/proc/run can't be written"),
        ("train", ["--output_dir="], "expected a text that is not blank"),
        ("train", ["--output_dir=runs/x", "--profile_steps=5"], "expected two steps"),
        ("train", ["--output_dir=runs/x", "--profile_steps=5,3"], "in ascending order"),
        ("train", ["--output_dir=runs/x", "--process_id=-1"], "--process_id=-1: expected"),
        ("train", ["--output_dir=runs/x", "--num_processes=0"], "--num_processes=0: expected"),
        ("train", ["--output_dir=runs/x", "--stopped_exit_code=256"], "at most 255"),
        ("train", ["--output_dir=runs/x", "--prometheus_file=a.txt"], "ends in .prom, got 'a.txt'"),
        ("train", ["--output_dir=runs/x", "--wandb=a/b"], "--wandb=a/b: expected at most 128"),
        ("train", ["--output_dir=runs/x", "--stepz=3"], "Unknown command line flag 'stepz'"),
        ("evaluate", ["--run=runs/none", "--tasks=a"], "expected a path that exists"),
        ("evaluate", ["--run=tests", "--tasks=a", "--num_examples=0"], "--num_examples=0"),
        ("evaluate", ["--run=tests", "--tasks=a", "--split="], "--split="),
        ("evaluate", ["--run=tests"], "Give either --tasks"),
        ("evaluate", ["--answers=tests", "--tasks=a"], "Give either --tasks"),
        ("evaluate", ["--answers=tests", "--split=a"], "leave out --split"),
        ("evaluate", ["--answers=tests"], "tests has no answers"),
        ("infer", ["--run=tests"], "Give one of --audio, --text"),
        ("infer", ["--prompts_task=a"], "give --answers"),
        ("infer", ["--answers=a", "--text=b"], "--answers goes with --prompts or --prompts_task"),
        ("infer", ["--at_once=2", "--text=b"], "--at_once goes with --prompts or --prompts_task"),
        ("infer", ["--split=train", "--text=b"], "--split goes with --prompts_task"),
        ("infer", ["--prompts=a.tsv", "--answers=a", "--play"], "--prompts=a.tsv: expected"),
        (
            "infer",
            [f"--prompts={FILE}", "--answers=runs/x", "--output=a.wav"],
            "--output is for one question",
        ),
        ("infer", ["--text=b", "--written", "--play"], "--play is for a spoken answer"),
        (
            "infer",
            ["--prompts_task=a", "--answers=b", "--written"],
            "--written is part of the prompts of --prompts_task",
        ),
        ("infer", ["--prompts=/dev/null", "--answers=runs/x"], "/dev/null has no rows"),
        ("infer", ["--text=a", "--seed=99999999999999999999999"], "--seed=99999"),
        (
            "infer",
            ["--prompts_task=a", "--answers=runs/x", "--module_import=no_such_module"],
            "--module_import=no_such_module: there is no such module",
        ),
        ("infer", ["--run=none", "--text=a"], "--run=none: expected a path that exists"),
        ("infer", [f"--run={FILE}", "--text=a"], "expected a folder, got the file"),
        ("infer", ["--run=tests", "--text="], "--text=: expected"),
        ("infer", ["--run=tests", "--text=a", "--temperature=nan"], "--temperature=nan: expected"),
        ("infer", ["--run=tests", "--text=a", "--temperature=-1"], "--temperature=-1: expected"),
        ("infer", ["--run=tests", "--text=a", "--top_p=2"], "--top_p=2: expected a number, above"),
        ("infer", ["--run=tests", "--text=a", "--top_k=-1"], "--top_k=-1: expected"),
        ("infer", ["--run=tests", "--text=a", "--max_new_tokens=0"], "--max_new_tokens=0"),
        ("infer", ["--run=tests", "--audio=none.wav"], "--audio=none.wav: expected"),
        ("infer", ["--run=tests", "--audio=tests"], "expected a file, got the folder"),
        ("infer", ["--run=tests", "--text=a", "--output=/proc/a/b.wav"], "can't be written"),
        ("infer", ["--run=tests", "--text=a", "--output=answer"], "answer has no suffix"),
        ("infer", ["--run=tests", "--text=a", "--task=sing"], "--task=sing"),
        (
            "infer",
            ["--run=tests", "--text=a", "--task=speak", "--written"],
            "--written goes with --task=answer, not",
        ),
        (
            "infer",
            ["--task=instruct", "--audio=speechgpt_jax/assets/corpus/clips/clips.json"],
            "--task=instruct needs a text; give --text.",
        ),
        (
            "infer",
            ["--task=transcribe", "--text=a"],
            "--task=transcribe needs a recording; give --audio.",
        ),
        ("infer", ["--run=tests", "--text=a", "--min_p=2"], "--min_p=2: expected a number, at"),
        ("infer", ["--run=tests", "--text=a", "--dtype=int4"], "--dtype=int4"),
        (
            "infer",
            ["--run=tests", "--text=a", "--engine=http://a/v1", "--int8"],
            "leave them out",
        ),
        (
            "infer",
            ["--run=tests", "--text=a", "--engine=http://a/v1", "--mesh=2"],
            "--mesh is for weights that are loaded here",
        ),
        (
            "infer",
            ["--text=a", "--max_new_tokens=300", "--context=300"],
            "--max_new_tokens=300 must be below --context=300",
        ),
        (
            "evaluate",
            ["--tasks=a", "--module_import=no_such_module"],
            "--module_import=no_such_module: there is no such module",
        ),
        (
            "evaluate",
            ["--tasks=a", "--module_import=.relative"],
            "--module_import=.relative: there is no such module",
        ),
        ("chat", ["--log=gs://b/a"], "expected a path on this machine, got gs://b/a"),
        (
            "train",
            ["--output_dir=runs/x", "--prometheus_file=gs://b/a.prom"],
            "--prometheus_file=gs://b/a.prom: expected a path on this machine",
        ),
        ("infer", ["--text=a", "--num_processes=2"], "--num_processes goes with --prompts"),
        ("infer", ["--text=a", "--process_id=0"], "--process_id goes with --prompts"),
        ("infer", ["--text=a", "--top_k=2147483648"], "--top_k=2147483648: expected"),
        ("infer", ["--text=a", "--prefix=a\udcff"], "expected a text in UTF-8"),
        ("serve", ["--max_body_mb=1e308"], "--max_body_mb=1e308: expected a number, at least"),
        ("serve", ["--max_audio_seconds=1e6"], "--max_audio_seconds=1e6: expected a number, above"),
        ("serve", ["--max_body_mb=0.0005"], "--max_body_mb=0.0005: expected a number, at least"),
        ("chat", ["--run=none"], "--run=none: expected a path that exists"),
        ("chat", ["--run=tests", f"--output_dir={FILE}"], "can't be a folder"),
        ("chat", ["--run=tests", "--history_tokens=-1"], "--history_tokens=-1: expected"),
        ("serve", ["--run=none"], "--run=none: expected a path that exists"),
        ("serve", ["--run=tests", "--port=70000"], "--port=70000: expected a whole number"),
        ("serve", ["--run=tests", "--num_slots=0"], "--num_slots=0: expected"),
        ("serve", ["--run=tests", "--max_seconds=0"], "--max_seconds=0: expected"),
        ("serve", ["--run=tests", f"--ssl_keyfile={FILE}"], "Give both --ssl_certfile and"),
        (
            "serve",
            ["--ssl_keyfile=gs://b/key.pem"],
            "--ssl_keyfile=gs://b/key.pem: expected a path",
        ),
        ("serve", ["--run=tests", "--host=256.1.1.1"], "--port=8000: can't listen"),
        ("precompile", ["--topology=v5e-4", "--batch_per_chip=0"], "--batch_per_chip=0: expected"),
        ("precompile", ["--topology=v5e-4", "--batch_per_chip=nan"], "--batch_per_chip=nan"),
        ("precompile", ["--topology=v5e-4", "--json=tests"], "can't be a file"),
        ("precompile", ["--topology=v5e-3"], "--topology=v5e-3: topology 'v5e-3': v5e comes in"),
        ("precompile", ["--topology=v9-4"], "--topology=v9-4: topology 'v9-4' is unknown"),
        ("precompile", ["--topology="], "--topology=: topology '' is unknown"),
    ],
)
def test_illegal_flags(main, flags, message):
    process = start(f"speechgpt_jax.{main}", *flags)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert process.stdout == "imported: []\n"


@pytest.mark.parametrize("main", ["train", "evaluate", "infer", "serve", "chat", "precompile"])
def test_help(main):
    command = [sys.executable, "-m", f"speechgpt_jax.{main}", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"python -m speechgpt_jax.{main}" in process.stdout
    assert process.stderr == ""
    has_gin = "--gin_file: A gin file" in process.stdout and "--gin.NAME=VALUE" in process.stdout
    assert has_gin == (main in ("train", "evaluate", "precompile"))
    usage, _, listed = process.stdout.partition("\nflags:\n")
    flags = {"gin", *re.findall(r"^  --(?:\[no\])?(\w+):", listed, re.MULTILINE)}
    examples = "".join(re.findall(r"^    .*\n", usage, re.MULTILINE))
    assert {*re.findall(r"--(\w+)", examples)} <= flags


def test_a_mistake_of_one_of_several_processes_is_one_line(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"text": "may"}\n')
    process = start(
        "speechgpt_jax.infer",
        f"--prompts={tmp_path}/prompts.jsonl",
        f"--answers={tmp_path}/answers",
        f"--coordinator_address=localhost:{free_port()}",
        "--num_processes=1",
        "--process_id=0",
        "--mesh=99",
    )
    assert process.returncode == 1
    assert process.stderr == (
        "Error: the number of devices (--mesh) 99 must be from 1 to 1, the devices of this host:"
        " every host decodes on its own.\n"
    )


def test_a_folder_without_a_run(tmp_path):
    process = start(
        "speechgpt_jax.infer", f"--run={tmp_path}", "--text=a", f"--output={tmp_path}/a.wav"
    )
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("Error: ")
    assert str(tmp_path) in line


def test_a_speaker_is_checked_before_the_model_is_loaded(tmp_path):
    """The folder holds no run: loading it would end in another error."""
    arguments = [f"--run={tmp_path}", "--text=a", f"--output={tmp_path}/a.wav", "--speaker=nobody"]
    process = start("speechgpt_jax.infer", *arguments)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("Error: ") and "'nobody'" in line and "slt" in line


def test_inference_needs_no_tensorflow():
    program = (
        "import speechgpt_jax.infer, speechgpt_jax.decoding.conversation, sys;"
        "print([name for name in ('tensorflow', 'seqio', 'apache_beam') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": 5}, "expected a text or the path of a recording, got 5"),
        ({"text": None}, "expected a text or the path of a recording, got None"),
        ({"text": "a \ud800"}, "expected a text or the path"),
        ({"audio": "none.wav"}, "there is no recording FOLDER/none.wav"),
        ({"text": "a", "audio": "b"}, "expected either"),
        ({"text": " "}, "expected a text or the path of a recording, got ' '"),
        ({"text": "a", "answer": "b"}, "the reply would replace the field `answer`; rename it"),
    ],
)
def test_questions_that_cannot_be_asked(tmp_path, row, message):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(row) + "\n")
    process = start("speechgpt_jax.infer", f"--prompts={prompts}", f"--answers={tmp_path / 'out'}")
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert f"{prompts}:1" in line and message.replace("FOLDER", str(tmp_path)) in line


@pytest.mark.parametrize(
    "row",
    [{"task": "demo_asr"}, {"task": 5, "prompt": "", "target": "", "answer": {}}],
    ids=["fields", "types"],
)
def test_answers_that_cannot_be_scored(tmp_path, row):
    (tmp_path / "answers-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "settings.json").write_text('{"split": "test"}')
    process = processes.run(*EVALUATE, f"--answers={tmp_path}")
    assert process.returncode == 1
    assert "expected in each row of answers" in process.stderr.splitlines()[-1]
    assert not (tmp_path / "evaluation.json").exists()


def test_answers_without_settings(tmp_path):
    (tmp_path / "answers-00000-of-00001.jsonl").write_text("{}\n")
    process = start("speechgpt_jax.evaluate", f"--answers={tmp_path}")
    assert process.returncode == 1 and "settings.json" in process.stderr


def test_a_damaged_evaluation_is_reported_before_answers_are_scored(tmp_path):
    row = {"task": "no_such_task", "prompt": "", "target": "", "answer": {}}
    (tmp_path / "answers-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "settings.json").write_text('{"split": "test"}')
    (tmp_path / "evaluation.json").write_text('{"test": 5}')
    process = processes.run(*EVALUATE, f"--answers={tmp_path}")
    assert process.returncode == 1
    assert "evaluation.json has no metrics by split" in process.stderr.splitlines()[-1]
