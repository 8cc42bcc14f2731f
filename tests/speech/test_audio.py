"""Sound in and out: every format a user has, and one clear line for what is none."""

import io

import numpy as np
import pytest
import soundfile

from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype("float32")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_any_format_and_rate_becomes_mono_16_khz(tmp_path, suffix, rate):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(1, rate), tone(1, rate)], axis=1), rate)
    wav = load_audio(path)
    assert wav.dtype == np.float32 and wav.ndim == 1
    assert abs(len(wav) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE  # mp3 pads both ends
    spectrum = np.abs(np.fft.rfft(wav[:SAMPLE_RATE], SAMPLE_RATE))
    assert spectrum.argmax() == 440


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(0.1, 16_000), np.zeros(1_600)], axis=1), 16_000, "FLOAT")
    np.testing.assert_allclose(load_audio(path), tone(0.1, 16_000) / 2, atol=1e-6)


def test_round_trip_and_open_files(tmp_path):
    save_audio(tmp_path / "tone.wav", tone(0.5, 16_000))
    assert [path.name for path in tmp_path.iterdir()] == ["tone.wav"]
    data = (tmp_path / "tone.wav").read_bytes()
    np.testing.assert_allclose(load_audio(io.BytesIO(data)), tone(0.5, 16_000), atol=1e-4)


def test_a_truncated_wav_gives_what_is_there(tmp_path):
    save_audio(tmp_path / "whole.wav", tone(1, 16_000))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:16_044])
    assert len(load_audio(tmp_path / "cut.wav")) == 8_000


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.wav", b"", "not readable as wav"),
        ("text.wav", b"this is no sound", "not readable as wav"),
        ("header.wav", None, "holds no samples"),
        ("nan.wav", np.array([0.0, np.nan], np.float32), "NaN"),
        ("absent.wav", "absent", "No audio file"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path, name, data, message):
    path = tmp_path / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif not isinstance(data, str):
        samples = np.zeros(0, np.float32) if data is None else data
        soundfile.write(path, samples, 16_000, "FLOAT")
    with pytest.raises(ValueError, match=message) as error:
        load_audio(path)
    assert name in str(error.value)
