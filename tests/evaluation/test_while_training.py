"""Tasks that are answered while a model trains, against `evaluate` on its checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from flax import nnx

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import checkpoints
from speechgpt_jax.decoding.loading import copy_for_decoding, load_llama
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation.evaluate import evaluate
from speechgpt_jax.evaluation.metrics import word_error_rate
from speechgpt_jax.evaluation.while_training import AnsweredTasks
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from speechgpt_jax.training.lm import train
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.progress import read_metrics
from tests.training.toy import CONFIG, RandomBatches

pytestmark = pytest.mark.slow

TASK = "demo_asr"
TOKENIZER = Tokenizer.from_pretrained(DEMO_TOKENIZER)
MODEL = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size, num_layers=1)


def run(folder, model=MODEL, **kwargs):
    train(
        model=model,
        tokenizer=TOKENIZER,
        batches=RandomBatches(),
        optimizer=AdamW(3e-3, schedule="constant"),
        steps=3,
        output_dir=str(folder),
        save_every=1,
        evaluate_every=1,
        **kwargs,
    )


def scores(folder):
    """{step: {metric: value}} of the answers in a run."""
    prefix = f"test/{TASK}/"
    lines = [
        (line["step"], {k.removeprefix(prefix): v for k, v in line.items() if prefix in k})
        for line in read_metrics(folder)
    ]
    return {step: figures for step, figures in lines if figures}


def evaluated(checkpoint):
    """The metrics of a checkpoint."""
    model, _ = load_llama(checkpoint)
    return evaluate(model, TOKENIZER, TASK, "test", num_examples=3)[TASK]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that keeps its last checkpoint, and the one with the fewest word errors."""
    folder = tmp_path_factory.mktemp("whole")
    keep = checkpoints.Keep(1, best=f"test/{TASK}/wer")
    run(folder, answered=AnsweredTasks([TASK], num_examples=3), keep=keep)
    return folder


def test_figures_are_those_of_the_checkpoints(whole):
    of_steps = scores(whole)
    assert list(of_steps) == [1, 2, 3]
    assert len({figures["wer"] for figures in of_steps.values()}) > 1
    best = min(of_steps, key=lambda step: of_steps[step]["wer"])
    saved = {int(folder.name): folder for folder in (whole / "checkpoints").iterdir()}
    assert saved.keys() == {best, 3}
    for step, folder in saved.items():
        assert of_steps[step] == evaluated(folder)


def test_an_adapter_answers_as_its_checkpoint_does(tmp_path):
    """What it is merged from stays as it is, an int8 base too."""
    model = Llama(dataclasses.replace(MODEL, lora=LoraConfig(rank=2)), rngs=nnx.Rngs(0))
    attention = model.layers.self_attn
    attention.q_proj.lora_b[...] = jnp.full_like(attention.q_proj.lora_b[...], 0.1)
    parameters = jax.device_get(list(checkpoints.flatten(nnx.state(model)).items()))
    metadata = {"model": dataclasses.asdict(model.config)}
    checkpoints.save_parameters(tmp_path, parameters, metadata)
    figures = AnsweredTasks([TASK], num_examples=3).prepare(TOKENIZER)(model)
    expected = evaluated(tmp_path)
    assert figures == {f"test/{TASK}/{name}": value for name, value in expected.items()}

    model.quantize()
    copy, _ = copy_for_decoding(model, dtype="bfloat16")
    merged = "kernel_scale", "q_proj.kernel", "up_proj.kernel", "lora_a", "lora_b"
    copied = checkpoints.flatten(nnx.state(copy))
    for name, array in checkpoints.flatten(nnx.state(model)).items():
        if name.endswith(merged):
            assert copied[name].dtype == array.dtype
            np.testing.assert_array_equal(copied[name], array)
    assert copied["embed_tokens"].dtype == "bfloat16"


def test_mistakes_that_the_examples_show(tmp_path):
    """They are one line, before training begins."""
    answered = AnsweredTasks([TASK], num_examples=1)
    best = checkpoints.Keep(best=f"test/{TASK}/wre")
    with pytest.raises(UserError, match=rf"'test/{TASK}/wre' is not .* one of test/{TASK}/wer, "):
        run(tmp_path / "run", answered=answered, keep=best)
    tts = seqio.TaskRegistry.get("demo_tts")
    nothing = [*tts.preprocessors, lambda dataset: dataset.take(0)]
    for name, message, fields in (
        ("wordless", "No reference has any words", {"metric_fns": [word_error_rate]}),
        ("empty", "'empty' has no examples", {"preprocessors": nothing}),
    ):
        seqio.TaskRegistry.add_provider(name, tts.replace(name=name, **fields))
        try:
            with pytest.raises(UserError, match=message):
                run(tmp_path / "run", answered=AnsweredTasks([name], num_examples=1))
        finally:
            seqio.TaskRegistry.remove(name)
    assert not list(tmp_path.iterdir())
