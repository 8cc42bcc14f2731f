"""A base with a byte-level tokenizer gets units, is trained in its template, asked and exported."""

import dataclasses
import json

import numpy as np
import pytest
import seqio
import torch
import transformers

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.conversion import llama
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.loading import build_llama
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import evaluate
from speechgpt_jax.models.llama import LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training import inputs, lm
from speechgpt_jax.training.optimizer import AdamW
from tasks import speech_instruct
from tests.conversion.released import change_json
from tests.models.hugging_face import CONFIG, reference
from tests.tokenizer.byte_level import QWEN, write
from tools import convert_llama, extend_vocabulary

pytestmark = pytest.mark.slow

# Qwen's embedding has more rows than its tokenizer ids.
QWEN2 = dataclasses.replace(CONFIG, vocab_size=700, qkv_bias=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    reference(QWEN2).save_pretrained(folder)
    write(folder, QWEN)
    change_json(folder / "config.json", bos_token_id=605, eos_token_id=None, pad_token_id=None)
    return folder


@pytest.fixture(scope="module")
def base(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    convert_llama.main(["from_hf", str(source), str(out), "--compute_dtype=float32"])
    return out


@pytest.fixture(scope="module")
def run(base):
    out = base.parent / "with_units"
    extend_vocabulary.main([str(base), str(out), "--units=200"])
    return out


def rows(run, name="embed_tokens"):
    array = checkpoints.Parameters(run).read(name)
    return array if name == "embed_tokens" else array.T


def model_config(run) -> LlamaConfig:
    return LlamaConfig.from_dict(checkpoints.read_metadata(run)["model"])


def test_tokenizer_and_rows_grow_together(base, run):
    before, after = (Tokenizer.from_pretrained(folder / "tokenizer") for folder in (base, run))
    first = before.vocab_size
    assert after.unit_ids == range(first, first + 200)
    markers = [after.token_to_id(token) for token in prompts.MARKERS]
    assert markers == [*range(first + 200, first + 206)]
    assert model_config(run).vocab_size == after.vocab_size == first + 206
    for name in ("embed_tokens", "lm_head.kernel"):
        old, new = rows(base, name), rows(run, name)
        np.testing.assert_array_equal(new[:first], old[:first])
        added = new[first : first + 206]
        mean, deviation = old[:first].mean(0), old[:first].std(0)
        noise = (added - mean) / deviation
        assert 0.09 < noise.std() < 0.11 and abs(noise.mean()) < 0.01
        assert not new[first + 206 :].any() and len(new) % 128 == 0


def test_the_template_is_saved(base, tmp_path):
    command = [str(base), str(tmp_path / "out"), "--units=9"]
    with pytest.raises(UserError, match="template 'llama3' does not fit the tokenizer"):
        extend_vocabulary.main([*command, "--template=llama3"])
    extend_vocabulary.main([*command, "--template=chatml"])
    saved = Tokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert saved.template.name == "chatml" and len(saved.unit_ids) == 9


def test_without_noise_the_new_rows_are_the_mean(base, tmp_path):
    extend_vocabulary.main([str(base), str(tmp_path / "mean"), "--units=2", "--noise=0"])
    first = Tokenizer.from_pretrained(base / "tokenizer").vocab_size
    new = rows(tmp_path / "mean")[first : first + 8]
    mean = rows(base)[:first].astype(np.float64).mean(0)
    np.testing.assert_allclose(new, np.broadcast_to(mean, new.shape), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def task(run, tmp_path_factory):
    dialogue = prompts.CROSS_MODAL.format(
        description=prompts.TRANSCRIBE, source="<sosp><5><199><eosp>", target="Hello! It's 1984."
    )
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    record = {"prefix": prompts.DEFAULT_PREFIX, "plain_text": dialogue}
    path.write_text((json.dumps(record) + "\n") * 8)
    files = {"train": str(path), "test": str(path)}
    name = speech_instruct.dialogue_lines(
        "byte_level", files, str(run / "tokenizer"), template="chatml"
    )
    yield name
    seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def trained(run, task):
    """Steps in which the answer is learnt by heart."""
    out = run.parent / "trained"
    lm.train(
        model=model_config(run),
        tokenizer=Tokenizer.from_pretrained(run / "tokenizer", "chatml"),
        batches=inputs.load_host_batches(task, batch_size=2, sequence_length=160),
        optimizer=AdamW(learning_rate=3e-3),
        steps=60,
        output_dir=str(out),
        start_from=str(run),
    )
    return out


def test_batches_begin_without_bos(run, task):
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer", "chatml")
    batch = next(inputs.load_host_batches(task, batch_size=1, sequence_length=160))
    first = batch["decoder_segment_ids"][0] == 1
    start, end = tokenizer.template.system
    prefix = tokenizer.encode(f"{start}{prompts.DEFAULT_PREFIX.strip()}{end}".strip())
    tokens = batch["decoder_input_tokens"][0][first]
    assert tokens[: len(prefix)].tolist() == prefix
    assert batch["decoder_target_tokens"][0][first].tolist()[-1] == tokenizer.eos_id
    response = tokenizer.template.parse(tokenizer.decode(tokens))
    assert response == prompts.Response("", "Hello! It's 1984.", [], "<sosp><5><199><eosp>")
    # All but the prefix has a loss.
    losses = batch["decoder_loss_weights"][0][first]
    human = tokenizer.encode(tokenizer.template.human_mark)
    begins = int(np.flatnonzero(losses)[0]) + 1
    assert losses[begins:].all() and tokens[begins : begins + len(human)].tolist() == human


def test_a_trained_run_is_evaluated(trained, task):
    tokenizer = Tokenizer.from_pretrained(trained / "tokenizer")
    assert tokenizer.bos_id is None and len(tokenizer.stop_ids) == 2
    metrics = evaluate.evaluate_run(trained, tasks=[task], num_examples=2, batch_size=2)
    assert metrics[task]["answer_accuracy"] == 1


def test_a_trained_run_answers_as_its_export_does(trained, tmp_path):
    convert_llama.main(["to_hf", str(trained), str(tmp_path / "out")])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer = Tokenizer.from_pretrained(trained / "tokenizer")
    assert tokenizer.template.name == "chatml"
    content = f"{prompts.TRANSCRIBE}. This is input: <sosp><5><199><eosp>"
    messages = [
        {"role": "system", "content": prompts.DEFAULT_PREFIX},
        {"role": "user", "content": content},
    ]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    dialogue = f"[Human]: {content}<eoh>. [SpeechGPT]:"
    ids = tokenizer.encode_dialogue(prompts.DEFAULT_PREFIX, dialogue)
    assert theirs(text).input_ids == ids
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size
    assert model.generation_config.eos_token_id == list(tokenizer.stop_ids)
    tokens = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)
    engine = Engine(checkpoints.load_model(trained, build_llama), num_slots=1)
    [answer] = engine.generate([Request(ids, 20, tokenizer.stop_ids, sampling=GREEDY)])
    for written in (answer, tokens[0, len(ids) :]):
        assert tokenizer.template.parse(tokenizer.decode(written)).text == "Hello! It's 1984."
    convert_llama.main(["from_hf", str(tmp_path / "out"), str(tmp_path / "again")])
    assert llama.run_tokenizer(tmp_path / "again").template == tokenizer.template


def test_a_task_in_another_template_is_not_evaluated(run, trained, task):
    model = checkpoints.load_model(trained, build_llama)
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    with pytest.raises(UserError, match="has the template 'chatml' and the run 'speechgpt'"):
        evaluate.evaluate(model, tokenizer, task, "test")


def test_mistakes_are_one_line(base, run, tmp_path):
    cases = [
        ([str(run), str(tmp_path / "out")], "has a token '<0>' already"),
        ([str(tmp_path), str(tmp_path / "out")], "no checkpoint in"),
        ([str(base), str(run)], "with_units exists; name another folder"),
        ([str(base), str(tmp_path / "out"), "--units=0"], "--units: expected a whole number"),
        ([str(base), str(tmp_path / "out"), "--noise=-1"], "--noise: expected a number"),
    ]
    for command, message in cases:
        with pytest.raises(UserError, match=message):
            extend_vocabulary.main(command)
    assert not (tmp_path / "out").exists()
