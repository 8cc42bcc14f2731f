"""Decodes and scores a split with a tiny real model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import checkpoints, gin_utils
from speechgpt_jax.decoding.masks import FORMS
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import evaluate, metrics
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.prompts import Response
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from tests import processes
from tests.data.synthetic_corpus import task_on, write_corpus
from tests.sizes import llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained(DEMO_TOKENIZER)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = dataclasses.replace(
        llama("tiny", tokenizer.vocab_size),
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=16,
        dtype="float32",
    )
    return Llama(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def run(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arrays = checkpoints.flatten(nnx.state(model)).items()
    metadata = {"model": dataclasses.asdict(model.config)}
    checkpoints.save_parameters(folder, jax.device_get(list(arrays)), metadata)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, size=6)
    task = task_on(folder, "demo_asr").replace(name="test_asr")
    seqio.TaskRegistry.add_provider("test_asr", task)
    yield task
    seqio.TaskRegistry.remove("test_asr")


def test_prompt_ends_where_the_response_begins(tokenizer):
    dialogue = "Be kind.[Human]: [SpeechGPT]<eoh> [SpeechGPT]: hello<eoa>"
    tokens = [*tokenizer.encode(dialogue), tokenizer.eos_id, 0, 0]
    prompt, answer = evaluate.split_prompt(tokenizer, np.array(tokens))
    assert prompt == [1, *tokenizer.encode("Be kind.[Human]: [SpeechGPT]<eoh> [SpeechGPT]:")]
    assert tokenizer.decode(answer) == "hello<eoa>"


def test_scores_of_a_model_that_knows_nothing(model, tokenizer, task):
    metrics = evaluate.evaluate(model, tokenizer, "test_asr", "test", batch_size=4)
    assert metrics["test_asr"]["wer"] >= 0.9
    assert "wer_of_another_sentence" in evaluate.table(metrics)


def test_files_of_ones_own_are_evaluated_by_a_gin_file(model, tokenizer, tmp_path):
    spoken, text = "<sosp><1><2><eosp>", "good morning"
    pairs = [("Write it down", spoken, text), ("Say it", text, spoken)]
    with (tmp_path / "dialogues.jsonl").open("w") as file:
        for description, source, target in 4 * pairs:
            prompt = f"[Human]: {description}. This is input: {source}<eoh> [SpeechGPT]:"
            row = {"prefix": "Be kind.\n", "plain_text": f"{prompt} {target}<eoa> "}
            file.write(json.dumps(row) + "\n")
    bindings = [f"TOKENIZER = '{DEMO_TOKENIZER}'", f"DIALOGUES = '{tmp_path}/*.jsonl'"]
    gin_utils.parse(["gin/stages/evaluation.gin"], bindings)
    names = gin_utils.arguments(evaluate.evaluate_run, ["tasks"])["tasks"]
    try:
        asr, tts = (evaluate.evaluate(model, tokenizer, name, "test")[name] for name in names)
    finally:
        for name in names:
            seqio.TaskRegistry.remove(name)
    assert asr["wer"] > 0 and tts["unit_error_rate"] > 0
    assert {"form_error"} <= asr.keys() & tts.keys()


def test_answers_come_in_the_order_of_the_questions(model, tokenizer, task, monkeypatch):
    """If each answer is its question's reference, there are no errors."""
    references = {}

    def split_prompt(tokenizer, tokens):
        prompt, answer = split(tokenizer, tokens)
        references[tuple(prompt)] = answer[:-1]
        return prompt, answer

    def know_all(engine, requests):
        return [references[tuple(request.prompt)] for request in requests]

    split = evaluate.split_prompt
    monkeypatch.setattr(evaluate, "split_prompt", split_prompt)
    monkeypatch.setattr(evaluate.Engine, "generate", know_all)
    metrics = evaluate.evaluate(model, tokenizer, "test_asr", "test", batch_size=4)
    assert metrics["test_asr"]["wer"] == 0.0


def test_forced_answers_have_the_form_of_their_task(model, tokenizer, task):
    """A model that prefers units to all other tokens writes text if it is forced to."""
    fond = nnx.clone(model)
    first, second = tokenizer.unit_ids[:2]
    kernel = fond.lm_head.kernel[...]
    fond.lm_head.kernel[...] = kernel.at[:, first].set(10.0).at[:, second].set(-10.0)
    free, forced = (
        evaluate.evaluate(fond, tokenizer, "test_asr", "test", batch_size=4, forced=forced)
        for forced in (False, True)
    )
    assert free["test_asr"]["form_error"] > 0 and forced["test_asr"]["form_error"] == 0


@pytest.mark.parametrize(
    ("response", "form"),
    [
        (Response("q", "a", [1]), "speech_to_speech"),
        (Response("q", "a", []), "speech_to_text"),
        (Response("", "a", [1]), "text_to_speech"),
        (Response("", "a", []), "text"),
        (Response("", "", [1]), "units"),
    ],
)
def test_the_form_of_a_response(response, form):
    assert evaluate.form_of(response) == form and form in FORMS


def test_a_missing_split_is_named(model, tokenizer, task):
    with pytest.raises(ValueError, match="test_asr has no split 'dev'; it has human, test, train"):
        evaluate.evaluate(model, tokenizer, "test_asr", "dev")


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["nope"], "test", "task 'nope' is unknown; choose from"),
        (
            ["test_asr", "test_asrr"],
            "test",
            r"'test_asrr' is unknown; did you mean test_asr\?",
        ),
        ([], "test", "Got no tasks"),
        ([""], "test", "task '' is unknown"),
        (["test_asr"], "nope", "test_asr has no split 'nope'; it has"),
        (["demo_modality_adaptation"], "test", "demo_modality_adaptation has no metrics"),
    ],
)
def test_tasks_are_checked_before_the_model_is_loaded(names, split, message, task, tmp_path):
    # No run is in the folder: loading it would raise another error.
    with pytest.raises(UserError, match=message):
        evaluate.evaluate_run(tmp_path, tasks=names, split=split)


def test_two_processes_score_one_run(run, tmp_path):
    """The figures are those of one process; the first one writes them."""
    port = processes.free_port()
    # First, so that the two find its programs in the compilation cache.
    expected = evaluate.evaluate_run(run, tasks=["demo_text_to_text"], num_examples=4)
    flags = ["--tasks=demo_text_to_text", "--num_examples=4", f"--run={run}"]
    flags += [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
    started = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [*flags, f"--process_id={number}", f"--output_dir={folder}"]
        module = (processes.run_module, "speechgpt_jax.evaluate")
        started.append(processes.start(*module, *arguments, output=folder, JAX_PLATFORMS="cpu"))
    for number, process in enumerate(started):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / str(number) / "stderr").read_text()
    assert evaluate.read_saved(tmp_path / "0") == {"test": expected}
    assert not (tmp_path / "1" / evaluate.EVALUATION).exists()
    printed = [(tmp_path / name / "stdout").read_text() for name in "01"]
    assert evaluate.table(expected) in printed[0] and "demo" not in printed[1]


def test_figures_are_saved_before_the_next_task(run, task, tmp_path):
    """The second task has no examples, which shows when it is read."""
    seqio.TaskRegistry.add(
        "test_no_rows",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"inputs": tf.zeros([0, 3], tf.int32), "targets": tf.zeros([0, 3], tf.int32)}
            ),
            splits=["test"],
        ),
        output_features=task.output_features,
        metric_fns=task.metric_fns,
    )
    try:
        with pytest.raises(UserError, match="'test_no_rows' has no examples"):
            evaluate.evaluate_run(
                run, tasks=["test_asr", "test_no_rows"], num_examples=4, output_dir=tmp_path
            )
    finally:
        seqio.TaskRegistry.remove("test_no_rows")
    assert evaluate.read_saved(tmp_path)["test"]["test_asr"].keys() >= {"wer"}


def test_a_task_without_a_template_is_refused_before_the_model_is_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    seqio.TaskRegistry.add(
        "bytes",
        source=seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["test"]),
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary())},
        metric_fns=[metrics.word_error_rate],
    )
    try:
        with pytest.raises(UserError, match="task bytes has a ByteVocabulary of another package"):
            evaluate.evaluate_run(tmp_path, tasks=["bytes"])
    finally:
        seqio.TaskRegistry.remove("bytes")


@pytest.mark.parametrize("numbers", [{"num_examples": 0}, {"batch_size": 0}])
def test_illegal_numbers(numbers, task, tmp_path):
    with pytest.raises(UserError, match="must be at least 1"):
        evaluate.evaluate_run(tmp_path, tasks=["test_asr"], **numbers)
