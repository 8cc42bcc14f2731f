"""The vocoder's losses, batches and training step on a tiny vocoder and made-up sound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import torch
from flax import nnx

from speechgpt_jax.speech.vocoder.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from speechgpt_jax.speech.vocoder.training import (
    VocoderBatches,
    VocoderObjective,
    init_state,
    make_train_step,
    mel_loss,
    prepare_rows,
    stft_loss,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig

pytestmark = pytest.mark.slow

CONFIG = VocoderConfig(
    num_embeddings=6,
    embedding_dim=8,
    speakers=("low", "high"),
    duration_embed_dim=16,
    upsample_rates=(2, 2),
    upsample_kernel_sizes=(4, 4),
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
    duration_hidden_dim=8,
    istft_n_fft=320,
    istft_hop_size=80,
    pitch_hidden_dim=8,
)
JUDGES = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 8),
    scales=2,
    scale_channels=(4, 8, 8),
    scale_strides=(2, 4, 1),
    scale_groups=(1, 4, 1),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Each unit is a harmonic tone of its own timbre, each speaker a pitch."""
    folder, rng, rows = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0), []
    for number in range(6):
        units, durations = rng.permutation(6), rng.integers(4, 12, size=6)
        speaker = ("low", "high")[number % 2]
        seconds = np.arange(320 * durations.sum()) / 16000
        timbre = np.repeat(units, durations * 320)
        hz = {"low": 100, "high": 180}[speaker]
        harmonics = (np.sin(2 * np.pi * hz * k * seconds) * (timbre % k == 0) for k in (1, 2, 3, 4))
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * sum(harmonics), 16000)
        rows.append(
            {
                "path": str(path),
                "units": units.tolist(),
                "durations": durations.tolist(),
                "speaker": speaker,
            }
        )
    return rows


def batches(rows, **kwargs):
    defaults = {"batch_size": 4, "segment_codes": 32, "seed": 0}
    return VocoderBatches(prepare_rows(rows, CONFIG), CONFIG, **defaults | kwargs)


def test_a_batch_is_what_was_recorded(rows):
    batch = next(batches(rows, segment_codes=64))
    assert {name: value.shape for name, value in batch.items()} == {
        "codes": (4, 64),
        "mask": (4, 64),
        "wav": (4, 64 * 320),
        "hz": (4, 64),
        "voiced": (4, 64),
        "speakers": (4,),
        "units": (4, 64),
        "durations": (4, 64),
    }
    for i in range(4):
        length, merged = int(batch["mask"][i].sum()), int((batch["durations"][i] > 0).sum())
        # Where a recording fits, all of it is there, and units repeated are the codes.
        if length < 64:
            durations = batch["durations"][i, :merged].astype(int)
            repeated = np.repeat(batch["units"][i, :merged], durations)
            np.testing.assert_array_equal(batch["codes"][i, :length], repeated)
            assert not batch["wav"][i, length * 320 :].any()
        hz = np.median(batch["hz"][i, :length])
        assert abs(hz - (100, 180)[batch["speakers"][i]]) < 3


def test_batches_go_on_where_they_were(rows):
    whole, half = batches(rows), batches(rows)
    for _ in range(3):
        next(whole)
    half.restore(whole.state())
    expected, batch = next(whole), next(half)
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_other_speakers_are_left_out(rows):
    assert len(prepare_rows([*rows, rows[0] | {"speaker": "other"}], CONFIG)) == len(rows)
    with pytest.raises(ValueError, match="no recordings"):
        prepare_rows([rows[0] | {"speaker": "other"}], CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("units", [6] * 6, "expected units 0..5"),
        ("units", [], "expected units 0..5"),
        ("durations", [1], "as many durations"),
        ("durations", [0] * 6, "as many durations"),
        ("durations", [100] * 6, "beyond its end"),
    ],
)
def test_refuses_rows(rows, field, value, message):
    with pytest.raises(ValueError, match=message):
        prepare_rows([rows[0] | {field: value}], CONFIG)


def test_refuses_another_sampling_rate(tmp_path, rows):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(ValueError, match="8000 Hz"):
        prepare_rows([rows[0] | {"path": str(tmp_path / "a.wav")}], CONFIG)


def test_stft_loss_is_parallel_wavegans():
    rng = np.random.default_rng(0)
    wav, target = rng.standard_normal((2, 2, 4096), np.float32)
    expected = 0
    for n_fft in (512, 256):
        spectra = [
            torch.stft(
                torch.from_numpy(x),
                n_fft,
                n_fft // 4,
                window=torch.hann_window(n_fft),
                return_complex=True,
            ).abs()
            for x in (wav, target)
        ]
        convergence = torch.linalg.norm(spectra[1] - spectra[0]) / torch.linalg.norm(spectra[1])
        expected += convergence + (spectra[1].log() - spectra[0].log()).abs().mean()
    np.testing.assert_allclose(stft_loss(wav, target, (512, 256)), expected / 2, rtol=1e-3)
    assert stft_loss(target, target, (512, 256)) == mel_loss(target, target, 16000) == 0


def test_losses_of_discriminators():
    real, made = [[jnp.ones(3), jnp.ones(2)]], [[jnp.zeros(3), jnp.full(2, 0.5)]]
    assert discriminator_loss(real, made) == 0.25
    assert adversarial_loss(made) == 0.25
    assert feature_loss(real, made) == 1.0


def test_discriminators_look_at_periods_and_scales():
    judges = Discriminators(JUDGES, rngs=nnx.Rngs(0))
    wav = np.random.default_rng(0).standard_normal((2, 1280), np.float32)
    features = judges(wav)
    # Every second sample in one row: 2 * 2 rows of 640, stride 3 and 1, then the judgement.
    assert [x.shape for x in features[0]] == [(4, 214, 4), (4, 214, 8), (4, 214, 1)]
    assert [x.shape[0] for x in features[1]] == [6, 6, 6]
    assert features[2][-1].shape == (2, 160, 1)
    assert features[3][-1].shape == (2, 81, 1)


def train(rows, discriminators=None, steps=30, **objective):
    vocoder = UnitVocoder(CONFIG, rngs=nnx.Rngs(0))
    optimizer = optax.adam(3e-3)
    objective = VocoderObjective(stft_sizes=(1024, 256), **objective)
    step = jax.jit(make_train_step(vocoder, discriminators, optimizer, objective, seed=0))
    state, data, history = init_state(vocoder, discriminators, optimizer), batches(rows), []
    for _ in range(steps):
        state, metrics = step(state, next(data))
        history.append(metrics)
    return state, history


def mean(history, name):
    return float(np.mean([metrics[name] for metrics in history]))


def test_learns(rows):
    state, history = train(rows)
    assert state["step"] == 30
    for name in ("stft_loss", "mel_loss", "duration_loss", "pitch_loss"):
        assert mean(history[-5:], name) < 0.8 * mean(history[:5], name), name
    assert history[0]["seconds"] < 4 * 32 / 50 + 1e-3


def test_learns_with_discriminators(rows):
    # One of each kind: more of them only compile for longer.
    judges = dataclasses.replace(JUDGES, periods=(2,), scales=1)
    judges = Discriminators(judges, rngs=nnx.Rngs(1))
    state, history = train(rows, judges, steps=20)
    assert mean(history[-5:], "discriminator_loss") < mean(history[:5], "discriminator_loss")
    assert mean(history[-5:], "mel_loss") < mean(history[:5], "mel_loss")
    before = jax.tree.leaves(nnx.state(judges, nnx.Param))
    after = jax.tree.leaves(state["discriminators"]["params"])
    assert all((a != b).any() for a, b in zip(before, after))
    assert {"adversarial_loss", "feature_loss"} <= history[0].keys()


def test_the_gradient_is_that_of_the_whole_loss(rows):
    """The step goes through the wav once, by hand: a step of plain SGD tells if it is right."""
    config = dataclasses.replace(CONFIG, duration_dropout=0.0)
    vocoder, batch = UnitVocoder(config, rngs=nnx.Rngs(0)), next(batches(rows))
    objective, rate = VocoderObjective(stft_sizes=(256,)), 1e-7
    step = jax.jit(make_train_step(vocoder, None, optax.sgd(rate), objective, seed=0))
    before = init_state(vocoder, None, optax.sgd(rate))
    after, first = step(before, batch)
    _, second = step(after, batch)
    moved = jax.tree.map(lambda a, b: a - b, *(s["vocoder"]["params"] for s in (before, after)))
    squared = sum(float((x**2).sum()) for x in jax.tree.leaves(moved)) / rate
    np.testing.assert_allclose(float(first["loss"] - second["loss"]), squared, rtol=0.1)
