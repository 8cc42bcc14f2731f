"""The lines that the demo prints about its answer."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from speechgpt_jax import demo
from speechgpt_jax.decoding.conversation import Reply
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import read_json
from speechgpt_jax.shipped import SHIPPED_MODEL

pytestmark = pytest.mark.slow

WAV = np.zeros(320, np.float32)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply("What is it?", "a cat", [1], WAV), "the answer is right."),
        (Reply("what was it", "a cat.", [1], WAV), "its transcript is wrong"),
        (Reply("what is it", "a dog.", [1], WAV), "its answer is wrong, the right one is 'a cat.'"),
        (Reply("what is it", "a cat.", [], WAV), "its reply has no speech"),
    ],
)
def test_the_verdict_is_honest(reply, expected):
    assert expected in demo.verdict(reply, "what is it?", "a cat.")


def test_the_recorded_question_is_shipped():
    row = demo.recorded_question()
    assert (demo.CLIPS / row["file"]).exists() and row["kind"] == "question" and row["answer"]


def test_losses_before_and_after_each_stage(tmp_path):
    for stage in (1, 2, 3):
        folder = tmp_path / f"stage{stage}"
        folder.mkdir()
        lines = [{"step": 10, "text_loss": 6.5, "unit_loss": 7.25}, {"step": 20, "unit_loss": 1.5}]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    table = demo.losses(tmp_path)
    cells = [list(column.cells) for column in table.columns]
    assert [cell[0] for cell in cells[1:]] == ["6.50", "-", "7.25", "1.50"]
    assert cells[0] == [f"{n} {name}" for n, name in enumerate(demo.STAGES, 1)]


def test_the_comparison_is_legible_in_80_columns():
    shipped = read_json(Path(SHIPPED_MODEL) / "evaluation.json")
    trained = {"test": {}, "unheard_voice": {}}
    for _, tasks, split, _ in demo.EVALUATIONS:
        trained[split] |= {task: shipped[split][task] for task in tasks}
    worst = dict.fromkeys(trained["test"]["demo_speech_to_speech"], 1.0)
    trained["test"]["demo_speech_to_speech"] = worst
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(demo.comparison(trained, shipped))
    text = console.export_text()
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= 80
    for words in ("asr, unheard voice", "speech to speech", "answers right", "100.0 to 100.0"):
        assert words in text
    assert "another sentence" not in text and "demo" not in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--question=no.wav", "question: expected a path that exists, got 'no.wav'"),
        ("--question={text}", "text.wav"),
        ("--output_dir={text}", "text.wav is a file"),
    ],
)
def test_bad_flags_are_reported_before_the_training(tmp_path, flag, message):
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    with pytest.raises(UserError, match=message):
        demo.main([flag.format(text=text)])
