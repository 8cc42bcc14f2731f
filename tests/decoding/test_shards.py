"""Numbered shards of answers: order, resumption, several processes."""

import json
import os

import pytest

from speechgpt_jax.decoding.shards import answer_shards, read_answers
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import write_jsonl
from speechgpt_jax.tokenizer import Tokenizer
from tests import processes

ROWS = [{"text": str(i)} for i in range(10)]
OPTIONS = {"rows_per_shard": 3, "at_once": 4, "settings": {"task": "answer"}}


def squared(row):
    return {"answer": int(row["text"]) ** 2}


def read(folder):
    files = sorted(folder.glob("answers-*"))
    assert [file.name for file in files] == [f"answers-0000{i}-of-00004.jsonl" for i in range(4)]
    return read_answers(folder)


EXPECTED = [row | squared(row) for row in ROWS]


def test_shards_have_the_rows_in_their_order(tmp_path):
    folder = tmp_path / "a[1]*"  # These characters stand for themselves.
    answer_shards(ROWS, folder, squared, **OPTIONS)
    assert read(folder) == EXPECTED


def test_a_killed_call_goes_on_with_the_missing_shards(tmp_path):
    def fails_at_7(row):
        if row["text"] == "7":
            raise KeyboardInterrupt
        return squared(row)

    with pytest.raises(KeyboardInterrupt):
        answer_shards(ROWS, tmp_path, fails_at_7, **OPTIONS)
    assert len(list(tmp_path.glob("answers-*"))) == 2
    asked = []
    answer_shards(ROWS, tmp_path, lambda row: asked.append(row) or squared(row), **OPTIONS)
    assert read(tmp_path) == EXPECTED and len(asked) == 4


def test_processes_share_the_shards(tmp_path):
    for index in range(3):
        answer_shards(ROWS, tmp_path, squared, share=(index, 3), **OPTIONS)
        done = len(list(tmp_path.glob("answers-*")))
        assert done == (2, 3, 4)[index]
    assert read(tmp_path) == EXPECTED


def test_other_settings_are_refused(tmp_path):
    answer_shards(ROWS, tmp_path, squared, **OPTIONS)
    other = OPTIONS | {"settings": {"task": "speak"}}
    with pytest.raises(UserError, match="begun with task 'answer', now it is 'speak'"):
        answer_shards(ROWS, tmp_path, squared, **other)
    with pytest.raises(UserError, match="begun with rows 10, now it is 9"):
        answer_shards(ROWS[1:], tmp_path, squared, **OPTIONS)
    with pytest.raises(UserError, match="begun with different sha256 of the rows"):
        answer_shards(ROWS[::-1], tmp_path, squared, **OPTIONS)


def test_other_files_among_the_shards(tmp_path):
    answer_shards(ROWS, tmp_path, squared, **OPTIONS)
    (tmp_path / "answers-a-of-b.jsonl").write_text("")
    with pytest.raises(UserError, match=r"answers-a-of-b.jsonl is no shard"):
        read_answers(tmp_path)


def infer(run, *arguments):
    """Output of the command, with two devices."""
    done = start_infer(run, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_infer(run, *arguments, **variables):
    command = ["speechgpt_jax.infer", f"--run={run}", "--max_new_tokens=8", "--context=256"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    variables["XLA_FLAGS"] = flags
    return processes.run(processes.run_module, *command, *arguments, **variables)


@pytest.mark.slow
def test_the_command_cuts_the_model_over_devices(untrained_run, tmp_path):
    """Greedy answers are those of one device, and those of a question that is asked alone."""
    questions = tmp_path / "questions.jsonl"
    rows = [{"text": text, "id": text[-2]} for text in ("what is it?", "what is red?", "who?")]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = {}
    for name, arguments in (("one", []), ("two", ["--mesh=2"])):
        folder = tmp_path / name
        arguments += [f"--prompts={questions}", f"--answers={folder}", "--rows_per_shard=2"]
        infer(untrained_run, "--written", *arguments)
        found[name] = read_answers(folder)
    assert found["one"] == found["two"]
    assert [{k: row[k] for k in ("text", "id")} for row in found["one"]] == rows
    alone = infer(untrained_run, "--written", f"--text={rows[2]['text']}")
    assert found["one"][2]["answer"].get("text", "") == alone.removeprefix("answer:").strip()


@pytest.mark.slow
def test_the_command_answers_the_prompts_of_a_task(untrained_run, tmp_path):
    # They import TensorFlow, which the fast tests here do without.
    import tasks  # noqa: F401 (registers them)
    from speechgpt_jax.evaluation import examples

    arguments = ["--prompts_task=demo_text_to_text", "--num_examples=3", "--rows_per_shard=2"]
    arguments.append(f"--answers={tmp_path}")
    infer(untrained_run, *arguments, f"--compilation_cache={tmp_path / 'programs'}")
    rows = read_answers(tmp_path)
    assert [row["example"] for row in rows] == [0, 1, 2]
    tokenizer = Tokenizer.from_pretrained(untrained_run / "tokenizer")
    for row, example in zip(rows, examples.read(tokenizer, "demo_text_to_text", "test")):
        assert row["prompt"] == tokenizer.decode(example.prompt)
        assert row["target"] == tokenizer.decode(example.answer)
        assert row["answer"].keys() <= {"transcript", "text", "units"}

    # Right answers in the place of some of the model's, and one that is wrong.
    for row in rows:
        right = tokenizer.template.parse(row["target"]).text
        row["answer"] = {"text": right if row["example"] else f"not {right}"}
    shards = sorted(tmp_path.glob("answers-*"))
    for shard, answered in zip(shards, (rows[:2], rows[2:]), strict=True):
        write_jsonl(shard, answered)
    done = processes.run(processes.run_module, "speechgpt_jax.evaluate", f"--answers={tmp_path}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "evaluation.json").read_text())["test"]["demo_text_to_text"]
    assert metrics["answer_accuracy"] == pytest.approx(2 / 3)
    shards[0].unlink()
    with pytest.raises(UserError, match="lacks 1 of 2 shards, such as answers-00000-of-00002"):
        read_answers(tmp_path)


@pytest.mark.slow
def test_the_command_names_the_question_that_it_cannot_answer(untrained_run, tmp_path):
    questions = tmp_path / "questions.jsonl"
    long = "why is it " + "so " * 300
    questions.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("who?", long)))
    files = [f"--prompts={questions}", f"--answers={tmp_path / 'answers'}"]
    done = start_infer(untrained_run, "--written", *files)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"Error: {long[:60]}...: A prompt of ") and "the context" in line


EMPTY = """
import seqio, tensorflow as tf
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.tokenizer import DEMO_TOKENIZER

seqio.TaskRegistry.add(
    "empty",
    source=seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {"targets": tf.zeros([0, 3], tf.int32)}
        ),
        splits=["test"],
    ),
    output_features={"targets": seqio.Feature(Vocabulary.from_pretrained(DEMO_TOKENIZER))},
)
"""


@pytest.mark.slow
def test_the_command_says_that_a_task_has_no_examples(untrained_run, tmp_path):
    (tmp_path / "my_empty_task.py").write_text(EMPTY)
    flags = ["--prompts_task=empty", "--module_import=my_empty_task"]
    answers = tmp_path / "answers"
    done = start_infer(untrained_run, *flags, f"--answers={answers}", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    expected = "Error: empty has no examples in split test; name another --split."
    assert done.stderr.splitlines()[-1] == expected
    assert not (answers / "settings.json").exists()
