"""Training of a tiny vocoder on synthetic recordings."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from speechgpt_jax import gin_utils
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.vocoder.discriminators import DiscriminatorConfig, Discriminators
from speechgpt_jax.speech.vocoder.training import VocoderBatches, VocoderObjective, prepare_rows
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.train_vocoder import create_state, make_train_step, train
from tests.speech.vocoder.tones import CONFIG, DISCRIMINATORS, write_tones

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"))


def batches(rows):
    return VocoderBatches(
        prepare_rows(rows, CONFIG), CONFIG, batch_size=4, segment_codes=32, seed=0
    )


def train_steps(rows, discriminators=None, steps=30, **objective):
    vocoder = UnitVocoder(CONFIG, rngs=nnx.Rngs(0))
    optimizer = optax.adam(3e-3)
    objective = VocoderObjective(stft_sizes=(1024, 256), **objective)
    models = {"vocoder": vocoder}
    if discriminators is not None:
        models["discriminators"] = discriminators
    train_step = make_train_step(**models, optimizer=optimizer, objective=objective, seed=0)
    step, data, history = jax.jit(train_step), batches(rows), []
    state = create_state(models, optimizer)
    for _ in range(steps):
        state, metrics = step(state, next(data))
        history.append(metrics)
    return state, history


def mean(history, name):
    return float(np.mean([metrics[name] for metrics in history]))


def test_learns(rows):
    state, history = train_steps(rows)
    assert state.step == 30
    for name in ("stft_loss", "mel_loss", "duration_loss", "pitch_loss"):
        assert mean(history[-5:], name) < 0.8 * mean(history[:5], name), name
    assert history[0]["seconds"] < 4 * 32 / 50 + 1e-3


def test_learns_with_discriminators(rows):
    # One of each kind: more of them only compile for longer.
    sizes = dataclasses.replace(DISCRIMINATORS, periods=(2,), scales=1)
    discriminators = Discriminators(sizes, rngs=nnx.Rngs(1))
    state, history = train_steps(rows, discriminators, steps=20)
    assert mean(history[-5:], "discriminator_loss") < mean(history[:5], "discriminator_loss")
    assert mean(history[-5:], "mel_loss") < mean(history[:5], "mel_loss")
    before = jax.tree.leaves(nnx.state(discriminators, nnx.Param))
    after = jax.tree.leaves(state.params["discriminators"])
    assert all((a != b).any() for a, b in zip(before, after))
    assert {"adversarial_loss", "feature_loss"} <= history[0].keys()


def test_the_gradient_is_that_of_the_whole_loss(rows):
    """The step backpropagates through the wav by hand; the loss must fall as after an SGD step."""
    config = dataclasses.replace(CONFIG, duration_dropout=0.0)
    vocoder, batch = UnitVocoder(config, rngs=nnx.Rngs(0)), next(batches(rows))
    objective, rate = VocoderObjective(stft_sizes=(256,)), 1e-7
    sgd = optax.sgd(rate)
    step = jax.jit(make_train_step(vocoder, optimizer=sgd, objective=objective, seed=0))
    before = create_state({"vocoder": vocoder}, sgd)
    after, first = step(before, batch)
    _, second = step(after, batch)
    moved = jax.tree.map(lambda a, b: a - b, *(s.params["vocoder"] for s in (before, after)))
    squared = sum(float((x**2).sum()) for x in jax.tree.leaves(moved)) / rate
    np.testing.assert_allclose(float(first["loss"] - second["loss"]), squared, rtol=0.1)


SETTINGS = {
    "model": CONFIG,
    "objective": VocoderObjective(stft_sizes=(256,)),
    "optimizer": AdamW(1e-3, schedule="constant"),
    "batch_size": 2,
    "segment_codes": 16,
}


def test_a_resumed_run_is_a_run_that_was_never_stopped(rows, tmp_path):
    whole = train(rows=rows, output_dir=tmp_path / "whole", steps=4, **SETTINGS)
    train(rows=rows, output_dir=tmp_path / "parts", steps=2, **SETTINGS)
    parts = train(rows=rows, output_dir=tmp_path / "parts", steps=4, **SETTINGS)
    loaded = UnitVocoder.from_pretrained(tmp_path / "parts" / "vocoder")
    for a, b, c in zip(*(jax.tree.leaves(nnx.state(v, nnx.Param)) for v in (whole, parts, loaded))):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.asarray(a, np.float16), c)
    start_from = str(tmp_path / "parts" / "vocoder")
    further = train(
        rows=rows, output_dir=tmp_path / "further", steps=1, start_from=start_from, **SETTINGS
    )
    assert further.config == CONFIG
    other = SETTINGS | {"model": dataclasses.replace(CONFIG, pitch_hidden_dim=16)}
    with pytest.raises(UserError, match="but the run's model is"):
        train(rows=rows, output_dir=tmp_path / "x", steps=1, start_from=start_from, **other)


@pytest.mark.parametrize("name", ["steps", "batch_size", "segment_codes", "save_every"])
def test_refuses_sizes_below_one(rows, tmp_path, name):
    with pytest.raises(UserError, match=f"{name} 0 must be at least 1"):
        train(rows=rows, output_dir=tmp_path, **{"steps": 1, **SETTINGS, name: 0})
    assert not list(tmp_path.iterdir())


def test_refuses_batches_beyond_the_memory(rows, tmp_path):
    with pytest.raises(UserError, match=r"batch_size 1000000000: the data of one batch would take"):
        train(rows=rows, output_dir=tmp_path, steps=1, **SETTINGS | {"batch_size": 10**9})
    assert not list(tmp_path.iterdir())


def test_refuses_a_folder_with_something_else_in_it(rows, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints is not a folder, and a run writes a folder"):
        train(rows=rows, output_dir=tmp_path, steps=1, **SETTINGS)


def test_refuses_segments_that_do_not_fit_the_losses(rows, tmp_path):
    with pytest.raises(
        UserError, match=r"50 are 16000 samples, no multiple of 256.* multiple of 4"
    ):
        train(rows=rows, output_dir=tmp_path, steps=1, **SETTINGS | {"segment_codes": 50})


def test_the_recipes_of_a_vocoder():
    def bound(stage, model):
        gin_utils.parse(
            [f"gin/models/vocoder_{model}.gin", f"gin/stages/vocoder_{stage}.gin"],
            [
                *(f"train_vocoder.train.{n} = 1" for n in ("steps", "batch_size", "segment_codes")),
                "optimizer.AdamW.learning_rate = 1e-3",
            ],
        )
        return gin_utils.arguments(train, ["model", "objective", "optimizer", "discriminators"])

    values = bound("spectral", "tiny")
    assert values["model"] == VocoderConfig.tiny()
    assert values["objective"] == VocoderObjective()
    assert (values["optimizer"].b1, values["optimizer"].b2) == (0.8, 0.99)
    assert values["discriminators"] is None
    values = bound("adversarial", "unit_hifigan")
    assert values["model"] == VocoderConfig.unit_hifigan()
    assert values["discriminators"] == DiscriminatorConfig()
    gin_utils.parse(["gin/runs/vocoder_tiny.gin"])
    assert gin_utils.arguments(train, ["steps", "batch_size"]) == {"steps": 3800, "batch_size": 8}


SMALL = """
from __gin__ import dynamic_registration
from speechgpt_jax.speech.vocoder import discriminators
from speechgpt_jax.speech.vocoder import vocoder
from speechgpt_jax.training import train_vocoder
train_vocoder.train.model = @vocoder.VocoderConfig()
train_vocoder.train.batch_size = 2
train_vocoder.train.steps = 1
"""


def test_the_published_recipe_takes_a_step_at_a_small_size(rows, tmp_path):
    config = dataclasses.replace(CONFIG, speakers=(), duration_embed_dim=8)
    discriminators = dataclasses.replace(DISCRIMINATORS, periods=(2,), scales=1)
    sizes = {"vocoder.VocoderConfig": config, "discriminators.DiscriminatorConfig": discriminators}
    bindings = [
        f"{name}.{field} = {value!r}\n"
        for name, small in sizes.items()
        for field, value in dataclasses.asdict(small).items()
    ]
    (tmp_path / "small.gin").write_text(SMALL + "".join(bindings))
    gin_utils.parse(["gin/runs/vocoder_unit_hifigan.gin", str(tmp_path / "small.gin")], [])
    assert gin_utils.arguments(train, ["segment_codes"]) == {"segment_codes": 28}
    trained = gin_utils.call(train, rows=rows, output_dir=str(tmp_path))
    assert trained.config == config
    assert "adversarial_loss" in (tmp_path / "metrics.jsonl").read_text()
