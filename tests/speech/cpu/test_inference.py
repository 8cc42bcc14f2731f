"""Models of `for_inference` compute the same; only cpu/devices.py asks for the backend."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import speechgpt_jax.speech
from speechgpt_jax.speech.cpu.attention import attend_by_segment
from speechgpt_jax.speech.cpu.inference import RowByRow, TapByTapConv, for_inference
from speechgpt_jax.speech.cpu.toom_cook import StridedToomCookConv
from speechgpt_jax.speech.encoder.attention import attend_masked
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.front_ends import Conv
from speechgpt_jax.speech.encoder.hubert import Hubert
from tests.speech.encoder.segments import rows_of_segments

WAVE = HubertConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    intermediate_size=48,
    feature_layer=2,
)
SPEECH = Path(speechgpt_jax.speech.__file__).parent


def test_only_cpu_devices_asks_for_the_backend():
    asking = [
        file.relative_to(SPEECH).as_posix()
        for file in SPEECH.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("default_backend", "platform")
    ]
    assert asking == ["cpu/devices.py"]


@pytest.mark.slow
def test_a_hubert_computes_the_same_and_is_not_changed():
    hubert = Hubert(WAVE, rngs=nnx.Rngs(0))
    wav = np.random.default_rng(0).standard_normal((2, 12_000), np.float32)
    lengths = np.array([12_000, 7_000])
    fast = for_inference(hubert)
    assert isinstance(fast.front_end, RowByRow) and not isinstance(hubert.front_end, RowByRow)
    convs = fast.front_end.front_end.conv_layers
    assert [type(conv) for conv in convs] == [Conv, *[StridedToomCookConv] * 4, Conv, Conv]
    run = jax.jit(lambda hubert: hubert(wav, lengths))
    np.testing.assert_allclose(run(fast), run(hubert), atol=1e-3)


@pytest.mark.slow
def test_an_accelerator_keeps_the_layers(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    hubert = Hubert(WAVE, rngs=nnx.Rngs(0))
    assert nnx.graphdef(for_inference(hubert)) == nnx.graphdef(hubert)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_bfloat16_is_the_type_of_factors_only(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    hubert = for_inference(Hubert(WAVE, rngs=nnx.Rngs(0)), jnp.bfloat16)
    types = {
        path: value[...].dtype for path, value in nnx.to_flat_state(nnx.state(hubert, nnx.Param))
    }
    assert hubert.dtype == jnp.bfloat16
    for path, dtype in types.items():
        first = path[-3:] == ("conv_layers", 0, "kernel")
        assert (dtype == jnp.bfloat16) == (path[-1] == "kernel" and not first), path


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (2, 2), (3, 1)])
def test_tap_by_tap_is_the_convolution(taps, stride, bias):
    conv = Conv(12, 20, taps, stride, bias, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 33, 12), np.float32)
    np.testing.assert_allclose(TapByTapConv(conv)(x), conv(x), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [30, 250, 611])
def test_attention_by_segment_is_masked_attention(steps):
    (q, k, v), segments = rows_of_segments(steps)
    expected = attend_masked(q, k, v, segments, segments)
    ours = attend_by_segment(q, k, v, segments, segments)
    np.testing.assert_allclose(ours, expected, atol=1e-5)

    # Some of the frames attend to all of them.
    part = slice(steps // 3, steps // 2)
    ours = attend_by_segment(q[:, part], k, v, segments[:, part], segments)
    np.testing.assert_allclose(ours, expected[:, part], atol=1e-5)
