"""Whole stages of a tiny LLaMA: resuming, starting from the previous stage, adapters on a base."""

import dataclasses
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy import CONFIG, RandomBatches, random_batch

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation.while_training import AnsweredTasks
from speechgpt_jax.limits import host_memory
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, SentencePieceTokenizer, Tokenizer
from speechgpt_jax.training.inputs import HeldOut, load_host_batches
from speechgpt_jax.training.lm import train
from speechgpt_jax.training.memory import out_of_memory
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.progress import read_metrics
from speechgpt_jax.training.start import initial_parameters

TOKENIZER = SentencePieceTokenizer.from_files(
    DEMO_TOKENIZER / "tokenizer.model", ["<0>", "<1>", "<sosp>"]
)
CONFIG = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size)
LORA = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, dropout=0.1))


def run(folder, steps=3, model=CONFIG, **kwargs):
    kwargs = {"batches": RandomBatches(), "tokenizer": TOKENIZER, "log_every": 1} | kwargs
    return train(
        model=model,
        optimizer=AdamW(1e-2, schedule="constant"),
        steps=steps,
        output_dir=str(folder),
        **kwargs,
    )


def start(model, folder):
    """Parameters by name with which a run starts from the checkpoint in `folder`."""
    mesh = sharding.create_mesh(sharding.MeshConfig())
    return checkpoints.flatten(initial_parameters(model, mesh, start_from=str(folder)))


def build(fields):
    lora = fields.pop("lora")
    config = LlamaConfig(**fields, lora=lora and LoraConfig(**lora))
    return Llama(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """A run of three steps, and its last state."""
    folder = tmp_path_factory.mktemp("stage1")
    return folder, run(folder)


@pytest.fixture(scope="module")
def stage3(stage1, tmp_path_factory):
    """An adapter of three steps on `stage1`."""
    folder = tmp_path_factory.mktemp("stage3")
    state = run(folder, model=LORA, start_from=str(stage1[0]), trainable="lora")
    return folder, state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


class Interrupted(RandomBatches):
    """Sends SIGTERM to this process before the second batch."""

    def __next__(self):
        if self.count == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__next__()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stage1):
    folder, state = stage1
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, batches=Interrupted())
    assert stopped.value.code == 0
    assert_same(run(tmp_path), state)
    parts, whole = read_metrics(tmp_path), read_metrics(folder)
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]


@pytest.mark.slow
def test_a_resumed_adapter_equals_an_uninterrupted_one(tmp_path, stage1, stage3):
    lora = {"model": LORA, "start_from": str(stage1[0]), "trainable": "lora"}
    with pytest.raises(SystemExit):
        run(tmp_path, batches=Interrupted(), **lora)
    assert_same(run(tmp_path, **lora), stage3[1])


@pytest.mark.slow
def test_the_run_folder_describes_itself(stage1):
    folder, _ = stage1
    assert Tokenizer.from_pretrained(folder / "tokenizer").vocab_size == CONFIG.vocab_size
    assert checkpoints.read_metadata(folder)["model"] == dataclasses.asdict(CONFIG)
    assert {"config.gin", "metrics.jsonl", "loss.png"} <= {path.name for path in folder.iterdir()}
    assert {"loss", "text_loss", "accuracy", "grad_norm", "non_padding"} <= set(
        read_metrics(folder)[-1]
    )


@pytest.mark.slow
def test_a_trained_model_is_loaded(stage1):
    folder, state = stage1
    model = checkpoints.load_model(folder, build)
    assert_same(nnx.state(model, nnx.Param), state.params)


@pytest.mark.slow
def test_only_the_adapter_is_saved_and_loads_on_its_base(stage1, stage3):
    folder, state = stage3
    base = nnx.state(checkpoints.load_model(stage1[0], build))
    saved = checkpoints.latest(folder)
    assert checkpoints.read_metadata(folder)["base"].endswith("/checkpoints/3")
    files = pathlib.Path(saved / "state").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    trained = sum(x.nbytes for x in jax.tree.leaves(state))
    assert size < trained + 50_000 < sum(x.nbytes for x in jax.tree.leaves(base))

    model = checkpoints.load_model(folder, build)
    adapter, rest = nnx.split_state(nnx.state(model, nnx.Param), nnx.LoRAParam, ...)
    assert_same(adapter, state.params)
    assert_same(rest, base)


@pytest.mark.slow
def test_runs_can_be_moved_together(stage1, stage3, tmp_path):
    apart = os.path.relpath(stage1[0], stage3[0])
    shutil.copytree(stage3[0], tmp_path / "here")
    shutil.copytree(stage1[0], tmp_path / "here" / apart)
    model = checkpoints.load_model(tmp_path / "here", build)
    assert_same(nnx.state(model, nnx.LoRAParam), stage3[1].params)


@pytest.mark.slow
def test_new_tokens_start_at_the_mean(stage1):
    folder, old_state = stage1
    tokenizer = SentencePieceTokenizer.from_files(
        DEMO_TOKENIZER / "tokenizer.model", ["<0>", "<1>", "<sosp>", *map(str, range(200, 340))]
    )
    model = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    assert model.padded_vocab_size > CONFIG.padded_vocab_size
    started = start(model, folder)
    for name, axis in (("embed_tokens", 0), ("lm_head.kernel", 1)):
        old, new = checkpoints.flatten(old_state.params)[name], started[name]
        old, new = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0)
        used = CONFIG.vocab_size
        np.testing.assert_array_equal(new[:used], old[:used])
        np.testing.assert_allclose(
            new[used:], np.broadcast_to(old[:used].mean(0), new[used:].shape), atol=1e-6
        )


@pytest.mark.slow
def test_new_tokens_within_the_padding_start_at_the_mean_too(stage1):
    folder, old_state = stage1
    tokenizer = SentencePieceTokenizer.from_files(
        DEMO_TOKENIZER / "tokenizer.model", ["<0>", "<1>", "<sosp>", "<eosp>"]
    )
    model = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    assert model.padded_vocab_size == CONFIG.padded_vocab_size
    old, new = old_state.params["embed_tokens"][...], start(model, folder)["embed_tokens"]
    used = CONFIG.vocab_size
    np.testing.assert_allclose(new[used], jnp.mean(old[:used], 0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [CONFIG.vocab_size - 1, CONFIG.vocab_size - 200])
def test_tokens_beyond_the_tokenizer_are_dropped(num_tokens, stage1, capsys):
    folder, old_state = stage1
    started = start(dataclasses.replace(CONFIG, vocab_size=num_tokens), folder)
    for name, axis in (("embed_tokens", 0), ("lm_head.kernel", 1)):
        old = np.moveaxis(checkpoints.flatten(old_state.params)[name], axis, 0)[:num_tokens]
        new = np.moveaxis(started[name], axis, 0)
        np.testing.assert_array_equal(new[:num_tokens], old)
        rest = new[num_tokens:]
        np.testing.assert_allclose(rest, np.broadcast_to(old.mean(0), rest.shape), atol=1e-6)
    assert f"the last {CONFIG.vocab_size - num_tokens} embeddings" in capsys.readouterr().out


@pytest.mark.slow
def test_an_adapter_needs_a_base_of_its_vocabulary(stage1, tmp_path):
    tokenizer = SentencePieceTokenizer.from_files(DEMO_TOKENIZER / "tokenizer.model", [])
    model = dataclasses.replace(LORA, vocab_size=tokenizer.vocab_size)
    lora = {"trainable": "lora", "start_from": str(stage1[0]), "tokenizer": tokenizer}
    # New tokens that fit into the base's padding rows need no more rows.
    assert model.padded_vocab_size == CONFIG.padded_vocab_size
    run(tmp_path, model=model, **lora)
    assert checkpoints.load_model(tmp_path, build).config == model

    pieces = SentencePieceTokenizer.from_files(
        DEMO_TOKENIZER / "tokenizer.model", [f"<{i}>" for i in range(200)]
    )
    base = dataclasses.replace(CONFIG, vocab_size=pieces.vocab_size)
    run(tmp_path / "base", 1, base, tokenizer=pieces)
    with pytest.raises(UserError, match="both need the same vocabulary"):
        run(tmp_path / "more", model=model, **lora | {"start_from": str(tmp_path / "base")})


@pytest.mark.slow
def test_an_adapter_with_new_tokens(stage1, tmp_path):
    """One token more than the base, whose padding has room for it."""
    tokenizer = SentencePieceTokenizer.from_files(
        DEMO_TOKENIZER / "tokenizer.model", ["<0>", "<1>", "<sosp>", "<eosp>"]
    )
    lora = LoraConfig(rank=2, new_tokens_from=40)
    model = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, lora=lora)
    started = start(model, stage1[0])
    ids = slice(40, tokenizer.vocab_size)
    np.testing.assert_array_equal(started["new_embeddings"], started["embed_tokens"][ids])
    np.testing.assert_array_equal(started["new_outputs"], started["lm_head.kernel"][:, ids])
    options = {"model": model, "tokenizer": tokenizer, "trainable": "lora"}
    state = run(tmp_path, start_from=str(stage1[0]), **options)
    trained = checkpoints.flatten(state.params)
    assert checkpoints.Parameters(tmp_path, with_bases=False).shapes.keys() == trained.keys()
    assert {name.rpartition(".")[2] for name in trained} == {
        *("lora_a", "lora_b", "new_embeddings", "new_outputs")
    }
    sizes = [sum(x.size for x in jax.tree.leaves(part)) for part in (state.params, state.opt_state)]
    assert sizes[1] <= 2 * sizes[0] + 3
    changed = trained["new_embeddings"] != started["new_embeddings"]
    assert changed[:20].any() and not changed[20:].any()  # The toy's tokens are below 60.
    loaded = checkpoints.load_model(tmp_path, build)
    assert_same(nnx.state(loaded, nnx.LoRAParam), state.params)
    # A further stage continues with the same rows.
    np.testing.assert_array_equal(
        start(model, tmp_path)["new_embeddings"], trained["new_embeddings"]
    )


@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        ("save_every 0 must be at least 1", {"save_every": 0}),
        ("log_every -1 must be at least 1", {"log_every": -1}),
        ("steps 0 must be at least 1", {"steps": 0}),
        ("accumulation 0 must be at least 1", {"accumulation": 0}),
    ],
)
def test_illegal_numbers(message, kwargs, tmp_path):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_heads(stage1, tmp_path, capsys):
    """Shapes of parameters show neither heads nor RoPE."""
    folder = shutil.copytree(stage1[0], tmp_path / "run")
    other = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=1, head_dim=16)
    with pytest.raises(UserError, match=r"run has num_heads 4, this model 2: use the sizes of the"):
        run(folder, model=other)
    run(folder, model=dataclasses.replace(CONFIG, rope_theta=5e5))
    assert "rope_theta is 500000.0 in this run and 10000.0 in" in capsys.readouterr().out


def test_a_batch_beyond_the_devices_memory_is_refused_before_it_is_read(tmp_path):
    rows = host_memory() // (20 * 64) // 64 * 64  # The data itself would fit.
    batches = load_host_batches("demo_asr", batch_size=rows, sequence_length=64)
    message = rf"^batch_size {rows}, with 64 tokens in a row and accumulation 1: the inputs of the"
    with pytest.raises(UserError, match=message):
        run(tmp_path, batches=batches)


def test_a_step_that_does_not_fit_in_memory_is_one_line():
    step = out_of_memory()(jax.jit(lambda x: jnp.full((2**22, 2**22), x)))
    with pytest.raises(UserError, match=r"^a step doesn't fit in memory .*take a smaller batch_si"):
        step(1.0)
    broken = out_of_memory()(jax.jit(lambda x: jax.pure_callback(lambda x: 1 / 0, x, x)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="division by zero"):
        jax.block_until_ready(broken(1.0))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(UserError, match="can't be"):
            run(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        (r"vocab_size 60 and the tokenizer .* set the model's to", {"vocab_size": 60}),
        ("trainable 'loar' must be one of all, embeddings, lora", {"trainable": "loar"}),
        ("start_from must name", {"trainable": "lora"}),
        ("set LlamaConfig.lora", {"trainable": "lora", "start_from": "stage1"}),
        ("no checkpoint in", {"start_from": "nowhere"}),
        (r"embed_tokens of shape .*, this model", {"start_from": "stage1", "hidden_size": 64}),
        (
            "has num_heads 4, this model 2",
            {"start_from": "stage1", "num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
        ),
        ("has the adapter", {"start_from": "stage3"}),
        ("which this model lacks", {"start_from": "stage1", "tie_embeddings": True}),
    ],
)
def test_mistakes_are_one_line(message, kwargs, tmp_path, stage1, stage3):
    runs = {"stage1": str(stage1[0]), "stage3": str(stage3[0])}
    fields = {field.name for field in dataclasses.fields(CONFIG)}
    model = dataclasses.replace(CONFIG, **{k: v for k, v in kwargs.items() if k in fields})
    kwargs = {k: runs.get(v, v) for k, v in kwargs.items() if k not in fields}
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, model=model, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_another_model_in_the_same_folder(stage1):
    """Nothing of the older run is changed."""
    tokenizer = SentencePieceTokenizer.from_files(
        DEMO_TOKENIZER / "tokenizer.model", ["<0>", "<1>", "<2>", "<sosp>"]
    )
    model = dataclasses.replace(CONFIG, hidden_size=64, vocab_size=tokenizer.vocab_size)
    kept = [stage1[0] / "config.gin", *sorted((stage1[0] / "tokenizer").iterdir())]
    before = [file.read_bytes() for file in kept]
    with pytest.raises(ValueError, match=r"has params.embed_tokens of shape .*, this run"):
        run(stage1[0], model=model, tokenizer=tokenizer, config_text=lambda: "another")
    assert [file.read_bytes() for file in kept] == before
    assert sorted((stage1[0] / "tokenizer").iterdir()) == kept[1:]


@pytest.mark.slow
def test_another_base_in_the_same_folder(stage1, stage3, tmp_path):
    run(tmp_path, 1)
    again = (
        rf"was trained on {stage1[0]}/checkpoints/(\d+), not on .*start_from to {stage1[0]}/c.*/\1 "
    )
    other = {"start_from": str(tmp_path), "config_text": lambda: "another"}
    with pytest.raises(ValueError, match=again):
        run(stage3[0], model=LORA, trainable="lora", **other)
    assert (stage3[0] / "config.gin").read_text() != "another"


@pytest.mark.slow
def test_a_run_does_not_start_from_itself(stage1, stage3, tmp_path):
    with pytest.raises(UserError, match=r"is the output folder itself.* leave start_from out"):
        run(stage1[0], 4, start_from=str(stage1[0]))
    (tmp_path / "link").symlink_to(stage3[0])
    itself = str(tmp_path / "link" / "checkpoints" / "3")
    with pytest.raises(UserError, match="or name the run from which it was started"):
        run(stage3[0], 4, model=LORA, start_from=itself, trainable="lora")
    lora = {"model": LORA, "start_from": str(stage1[0]), "trainable": "lora"}
    run(tmp_path / "run", 1, **lora)
    assert run(tmp_path / "run", 2, **lora).step == 2  # Its own start is no mistake.


@pytest.mark.slow
def test_another_strength_of_the_adapter_is_said(stage3, tmp_path, capsys):
    lora = {"start_from": str(stage3[0]), "trainable": "lora"}
    run(tmp_path / "same", 1, LORA, **lora)
    assert "is that meant?" not in capsys.readouterr().out
    stronger = dataclasses.replace(LORA, lora=dataclasses.replace(LORA.lora, alpha=32))
    run(tmp_path / "stronger", 1, stronger, **lora)
    out = capsys.readouterr().out
    assert f"multiplied by 16 in this run and by 8 in {stage3[0]} (alpha and rank_stabil" in out


def held_out_of(batches, shares=1, index=0):
    own = [{k: np.split(x, shares)[index] for k, x in batch.items()} for batch in batches]
    return (HeldOut("test", own),)


@pytest.mark.slow
def test_held_out_losses_and_the_best_checkpoint(tmp_path):
    batches = [random_batch([12, 7, 5, 9], seed) for seed in (50, 51)]
    state = run(
        tmp_path,
        8,
        held_out=held_out_of(batches),
        evaluate_every=2,
        save_every=2,
        keep=checkpoints.Keep(last=1, best="test/loss"),
    )
    lines = [line for line in read_metrics(tmp_path) if "test/loss" in line]
    losses = {line["step"]: line["test/loss"] for line in lines}
    assert list(losses) == [2, 4, 6, 8]

    # The loss of the last state, by the model itself.
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(model, state.params)
    total = weight = 0.0
    for batch in batches:
        logits = model.unembed(
            model(
                batch["decoder_input_tokens"],
                positions=batch["decoder_positions"],
                segment_ids=batch["decoder_segment_ids"],
            )
        )
        log_probs = jax.nn.log_softmax(np.float32(logits))
        picked = np.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], -1)
        total -= float((picked[..., 0] * batch["decoder_loss_weights"]).sum())
        weight += batch["decoder_loss_weights"].sum()
    np.testing.assert_allclose(losses[8], total / weight, rtol=1e-5)

    best = min(losses, key=losses.get)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 8}


@pytest.mark.slow
def test_the_best_checkpoint_by_a_metric_without_tokens(tmp_path):
    """A split without units stops the run at its first evaluation."""
    with pytest.raises(UserError, match=r"'test/unit_loss' has no value.*choose one of test/loss"):
        run(
            tmp_path,
            8,
            held_out=held_out_of([random_batch([12, 7])]),
            evaluate_every=2,
            save_every=4,
            keep=checkpoints.Keep(best="test/unit_loss"),
        )
    assert not checkpoints.latest_step(tmp_path)


@pytest.mark.parametrize("fields", [{"tasks": []}, {"num_examples": 0}, {"batch_size": 0}])
def test_illegal_numbers_of_answered_tasks(fields):
    with pytest.raises(UserError, match=r"at least one SeqIO task|0 must be a"):
        AnsweredTasks(**{"tasks": ["demo_asr"]} | fields)


@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        ("evaluate_every 2 goes with held_out or answered, of which none", {"evaluate_every": 2}),
        ("evaluate_every 0 must be at least 1", {"evaluate_every": 0}),
        ("Keep.best 'test/los' is not evaluated", {"keep": checkpoints.Keep(best="test/los")}),
        ("save_every 3 must be a multiple", {"keep": checkpoints.Keep(best="test/loss")}),
        ("task 'demo_asrr' is unknown", {"answered": AnsweredTasks(["demo_asrr"])}),
        ("has no split 'dev'", {"answered": AnsweredTasks(["demo_asr"], split="dev")}),
        (
            r"devices \(--mesh\) 99 must be from 1 to \d+, the devices of this host",
            {"answered": AnsweredTasks(["demo_asr"], devices=99)},
        ),
    ],
)
def test_mistakes_of_evaluation(message, kwargs, tmp_path):
    if "best" in message or "multiple" in message:
        kwargs |= {"held_out": held_out_of([random_batch([5])]), "evaluate_every": 2}
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", save_every=3, **kwargs)
    assert not list(tmp_path.iterdir())
