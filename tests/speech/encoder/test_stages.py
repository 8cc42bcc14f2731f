"""Features do not depend on how recordings are cut into pieces and packed in rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import runner, stages
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.runner import Runner
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit

pytestmark = pytest.mark.slow

WAVE = HubertConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    intermediate_size=48,
    feature_layer=2,
)
MEL = HubertConfig(
    front_end="mel",
    conv_dim=(20, 32, 32),
    conv_kernel=(400, 3, 3),
    conv_stride=(160, 1, 2),
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=48,
    norm_first=True,
    position_period=40,
    attention_frames=30,
    feature_layer=2,
    projection_size=8,
    projection_reach=2,
)


def clips(*seconds: float) -> list[np.ndarray]:
    """Noise of changing level."""
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(round(16_000 * length)).astype(np.float32) for length in seconds]
    return [x * (1.1 + np.sin(np.arange(len(x), dtype=np.float32) / 9_000)) for x in noise]


def features(hubert: Hubert, wavs: list[np.ndarray]) -> list[np.ndarray]:
    return Speech2Unit(hubert, None).features(wavs)


@pytest.fixture(scope="module", params=[WAVE, MEL], ids=["wave", "mel"])
def alone(request):
    """A HuBERT, recordings, and the features of each recording in a program of its own."""
    hubert = Hubert(request.param, rngs=nnx.Rngs(0))
    encode = jax.jit(lambda hubert, wav, lengths: hubert(wav, lengths))
    wavs = clips(3.3, 12.345, 27.0, 0.3, 45.0 if request.param is MEL else 31.0)
    return hubert, wavs, [encode(hubert, wav[None], np.array([len(wav)]))[0] for wav in wavs]


@pytest.fixture(scope="module", params=["plain", "for_inference", "accelerator"])
def form(request):
    """Form of the model. An accelerator's programs, with several rows each, also run on a CPU."""
    if request.param != "accelerator":
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        forget_programs()
        yield request.param
    forget_programs()


def forget_programs():
    runner._jit.cache_clear()
    jax.clear_caches()


def test_features_do_not_depend_on_pieces_and_rows(alone, form):
    hubert, wavs, expected_features = alone
    config = hubert.config
    encoder = for_inference(hubert) if form == "for_inference" else hubert
    *packed, nothing = features(encoder, [*wavs, *clips(0.02)])
    assert nothing.shape == (0, config.feature_size)
    for wav, ours, expected in zip(wavs, packed, expected_features):
        assert ours.shape == expected.shape == (config.num_frames(len(wav)), config.feature_size)
        np.testing.assert_allclose(ours, expected, atol=2e-3)


@pytest.mark.parametrize("form", ["for_inference", "accelerator"], indirect=True)
@pytest.mark.parametrize("config", [WAVE, MEL], ids=["wave", "mel"])
def test_products_of_bfloat16_change_little(config, form):
    wavs = clips(3.3, 45.0)
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    exact = features(hubert, wavs)
    for ours, expected in zip(features(for_inference(hubert, jnp.bfloat16), wavs), exact):
        assert ours.dtype == np.float32
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        assert 0.001 < error < 0.02


def test_attention_that_reaches_far_but_not_everywhere_is_computed_in_windows_too():
    hubert = Hubert(dataclasses.replace(MEL, attention_frames=300), rngs=nnx.Rngs(0))
    (wav,) = clips(70.0)
    (ours,) = features(hubert, [wav])
    expected = nnx.jit(Hubert.__call__)(hubert, wav[None], np.array([len(wav)]))[0]
    np.testing.assert_allclose(ours, expected, atol=2e-3)


@pytest.mark.parametrize("config", [WAVE, MEL], ids=["wave", "mel"])
def test_a_normalising_encoder_ignores_level_and_offset(config):
    hubert = Hubert(dataclasses.replace(config, normalize=True), rngs=nnx.Rngs(0))
    (wav,) = clips(2.5)
    quiet_and_off = 0.01 * wav + 0.2
    ours, changed = features(hubert, [wav, quiet_and_off])
    np.testing.assert_allclose(changed, ours, atol=2e-2)
    padded = np.zeros((2, 50_000), np.float32)
    padded[:, : len(wav)] = wav, quiet_and_off
    for row in nnx.jit(Hubert.__call__)(hubert, padded, np.array([len(wav)] * 2)):
        np.testing.assert_allclose(row[: len(ours)], ours, atol=2e-2)


def test_few_shapes_are_compiled_and_little_is_padded(monkeypatch):
    results, rows = {}, []
    run = Runner._run

    def run_each_shape_once(self, function, model, arrays, single_core):
        key = function.__name__, single_core, *(x.shape for x in jax.tree.leaves(arrays))
        if function is stages._transform:
            rows.append(arrays[-1])
        if key not in results:
            results[key] = run(self, function, model, arrays, single_core)
        return results[key]

    monkeypatch.setattr(Runner, "_run", run_each_shape_once)
    lengths = np.random.default_rng(0).uniform(1, 30, 120)
    features(Hubert(WAVE, rngs=nnx.Rngs(0)), clips(*lengths))
    assert len(results) == 4
    assert np.mean([numbers > 0 for numbers in rows]) > 0.95
