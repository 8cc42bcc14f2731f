"""Recordings cut into pieces, packed in rows and put together again are heard as whole ones."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.speech.encoder import listener
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.listener import CONTEXT, WINDOW, Listener, first_fit, windows

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
    """Noise that swells and fades."""
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(round(16_000 * length)).astype(np.float32) for length in seconds]
    return [x * (1.1 + np.sin(np.arange(len(x), dtype=np.float32) / 9_000)) for x in noise]


@pytest.fixture(params=["plain", "prepared", "accelerator"])
def way(request, monkeypatch):
    """How it is computed; an accelerator's programs, which hear rows together, also run here."""
    if request.param == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        listener._jit.cache_clear()
        jax.clear_caches()
    yield request.param
    if request.param == "accelerator":
        listener._jit.cache_clear()
        jax.clear_caches()


@pytest.mark.parametrize("config", [WAVE, MEL], ids=["wave", "mel"])
def test_what_is_cut_and_packed_is_heard_as_alone_and_whole(config, way):
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    if way == "prepared":
        hubert.prepare()
    hear = jax.jit(lambda hubert, wav, lengths: hubert(wav, lengths))
    wavs = clips(3.3, 12.345, 27.0, 0.3, 45.0 if config is MEL else 31.0)
    *packed, nothing = Listener(hubert, None, 40).hear([*wavs, *clips(0.02)])
    assert nothing.shape == (0, config.feature_size)
    for wav, features in zip(wavs, packed):
        expected = np.asarray(hear(hubert, wav[None], np.array([len(wav)])))[0]
        assert (
            features.shape == expected.shape == (config.num_frames(len(wav)), config.feature_size)
        )
        np.testing.assert_allclose(features, expected, atol=2e-3)


@pytest.mark.parametrize("way", ["prepared", "accelerator"], indirect=True)
@pytest.mark.parametrize("config", [WAVE, MEL], ids=["wave", "mel"])
def test_products_of_bfloat16_change_little(config, way):
    wavs = clips(3.3, 45.0)
    exact = Listener(Hubert(config, rngs=nnx.Rngs(0)), None, 40).hear(wavs)
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    hubert.prepare(jnp.bfloat16)
    for features, expected in zip(Listener(hubert, None, 40).hear(wavs), exact):
        assert features.dtype == np.float32
        error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
        assert 0.001 < error < 0.02


def test_float32_is_multiplied_as_such_on_accelerators_too():
    precisions = []

    def multiply(hubert, x):
        precisions.append(jax.config.jax_default_matmul_precision)
        return x @ x

    Listener(Hubert(WAVE, rngs=nnx.Rngs(0)), None, 40).call(multiply, False, np.ones((2, 2)))
    assert precisions == ["highest"]


def test_attention_that_reaches_far_but_not_everywhere_is_heard_in_windows_too():
    far = dataclasses.replace(MEL, attention_frames=300)
    hubert = Hubert(far, rngs=nnx.Rngs(0))
    (wav,) = clips(70.0)
    (features,) = Listener(hubert, None, 40).hear([wav])
    expected = hubert(wav[None], np.array([len(wav)]))[0]
    np.testing.assert_allclose(features, expected, atol=2e-3)


def test_few_shapes_are_compiled_and_little_is_padded(monkeypatch):
    hubert = Hubert(WAVE, rngs=nnx.Rngs(0))
    shapes, rows = set(), []
    call = Listener.call

    def watched(self, function, alone, *args):
        arrays = [x.shape for x in jax.tree.leaves(args) if not isinstance(x, jax.Array)]
        shapes.add((function.__name__, alone, *arrays))
        if function is listener._transform:
            rows.append(args[-1])
        return call(self, function, alone, *args)

    monkeypatch.setattr(Listener, "call", watched)
    lengths = np.random.default_rng(0).uniform(1, 30, 120)
    Listener(hubert, None, 40).hear(clips(*lengths))
    assert len(shapes) == 4
    assert np.mean([numbers > 0 for numbers in rows]) > 0.95


@hypothesis.given(st.lists(st.integers(1, 40), min_size=1, max_size=50))
def test_first_fit_takes_all_and_leaves_no_two_rows_that_fit_in_one(sizes):
    rows = first_fit(sizes, 40)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
    filled = sorted(sum(sizes[i] for i in row) for row in rows)
    assert filled[-1] <= 40 and (len(rows) == 1 or filled[0] + filled[1] > 40)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(WINDOW + 1, 50_000), st.sampled_from([0, CONTEXT]))
def test_windows_keep_every_frame_once_and_give_it_context(total, context):
    kept = []
    for start, size, first, end in windows(total, WINDOW, context):
        assert start >= 0 and start + size <= total and size <= WINDOW and size % 50 == 0
        assert first >= context or start == 0
        assert size - end >= context or start + size == total
        kept += range(start + first, start + end)
    assert kept == list(range(total))
