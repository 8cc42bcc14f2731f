"""Whisper's encoder as a HuBERT: the same convolutions, and nearly the same features."""

import dataclasses

import numpy as np
import pytest

from speechgpt_jax.conversion.whisper import IGNORED, build, fit_projection, split_attention
from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.encoder.targets import save_targets
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures
from tools import whisper_to_hubert

pytestmark = pytest.mark.slow

WHOLE = dataclasses.replace(
    HubertConfig.whisper_tiny(), attention_frames=None, projection_size=None, projection_reach=0
)


@pytest.fixture(scope="module")
def teacher():
    return WhisperFeatures(4)


@pytest.fixture(scope="module")
def wav():
    """Speech of a human."""
    return load_audio(sorted((ASSETS / "corpus" / "clips").glob("*-human.flac"))[0])


def test_with_unbounded_attention_features_are_whispers(teacher, wav):
    hubert = build(teacher.variables, WHOLE)
    (ours,) = Speech2Unit(hubert, None).features([wav])
    (theirs,) = teacher([wav])
    assert ours.shape == theirs.shape
    # Both have variance 1: what is left is the peak's level, the edges and the rounded periods.
    assert np.square(ours - theirs)[5:-5].mean() < 0.1


def test_with_bounded_attention_features_are_nearly_whispers(teacher, wav):
    bound = dataclasses.replace(
        WHOLE, attention_frames=HubertConfig.whisper_tiny().attention_frames
    )
    (ours,) = Speech2Unit(build(teacher.variables, bound), None).features([wav])
    assert np.square(ours - teacher([wav])[0]).mean() < 0.5


def test_every_variable_is_converted_or_ignored(teacher):
    rng = np.random.default_rng(0)
    config = HubertConfig.whisper_tiny()
    projection = tuple(np.float32(rng.standard_normal(s)) for s in ((3 * 384, 37), 37))
    hubert = build(teacher.variables, config, projection)
    np.testing.assert_array_equal(hubert.projection.kernel[...], projection[0])
    np.testing.assert_array_equal(hubert.projection.bias[...], projection[1])
    fused = np.asarray(teacher.variables["encoder/layer_2/self_attention/linear_0/weight"])
    value = hubert.layers[2].attention.v_proj.kernel[...]
    np.testing.assert_array_equal(value, fused[2 * 384 :].T)
    # Only the ignored ones are left out; an unknown one is refused.
    assert set(IGNORED) < set(split_attention(teacher.variables))
    with pytest.raises(UserError, match="unexpected encoder/layer_4/x"):
        build({**teacher.variables, "encoder/layer_4/x": np.ones(3)}, config, projection)


def test_the_projection_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((4, 2)), rng.standard_normal(2)
    clips = [np.full(n, 100, np.int16) for n in (30, 50, 90)]
    features = [rng.standard_normal((len(clip), 4)) for clip in clips]
    targets = [x @ kernel + bias for x in features]

    def features_of(wavs):
        by_length = {len(x): x for x in features}
        return [by_length[len(wav)] for wav in wavs]

    found = fit_projection(features_of, clips, targets)
    np.testing.assert_allclose(found[0], kernel, atol=1e-4)
    np.testing.assert_allclose(found[1], bias, atol=1e-4)


def test_targets_of_another_size_are_refused(tmp_path):
    wavs = [np.zeros(800, np.float32)]
    save_targets(tmp_path / "targets", wavs, [np.zeros((2, 5), np.float16)])
    with pytest.raises(
        UserError, match=r"of \[2, 5\] per clip; expected \[frames, 37\]: .* --directions=37"
    ):
        whisper_to_hubert.main([str(tmp_path / "out"), f"--targets={tmp_path}/targets"])
    with pytest.raises(UserError, match=r"--targets: expected a path that exists"):
        whisper_to_hubert.main([str(tmp_path / "out"), f"--targets={tmp_path}/nowhere"])
    assert not (tmp_path / "out").exists()
