"""Sound in and out: files become mono samples at 16 kHz and are written again."""

import numpy as np
import pytest
import soundfile
import soxr

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_output, load_audio, save_audio
from speechgpt_jax.speech.audio_files import decoders
from tests.speech.audio_files.recordings import recording, stereo_noise, tone, write_ffmpeg


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_rate_becomes_16_khz(tmp_path, suffix, rate):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(1, rate), tone(1, rate)], axis=1), rate)
    wav = load_audio(path)
    assert abs(len(wav) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav[:SAMPLE_RATE], SAMPLE_RATE)).argmax() == 440


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("matroska", "flac"),
        ("mp4", "alac"),
        ("wv", "wavpack"),
        ("tta", "tta"),
        ("mov", "pcm_s16be"),
    ],
)
def test_channels_are_averaged_exactly(tmp_path, container, codec):
    wav = stereo_noise()
    path = write_ffmpeg(tmp_path / "a", container, codec, 16_000, wav)
    np.testing.assert_array_equal(load_audio(path), wav.mean(axis=0))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_channels_of_wav_are_averaged_exactly(tmp_path, subtype):
    wav = np.round(stereo_noise() * 128) / 128
    soundfile.write(tmp_path / "a.wav", wav.T, 16_000, subtype)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), wav.mean(axis=0), atol=2**-8)


@pytest.mark.parametrize("container", ["wav", "flac", "matroska"])
def test_channels_that_cancel_each_other_out_are_refused(tmp_path, container):
    wav = stereo_noise()
    path = tmp_path / f"a.{container}"

    def write(first, second):
        channels = np.stack([first, second])
        if container == "matroska":
            write_ffmpeg(path, container, "pcm_s16le", 16_000, channels)
        else:
            soundfile.write(path, channels.T, 16_000)

    for second in (-wav[0], -0.95 * wav[0]):
        write(wav[0], second)
        with pytest.raises(UserError, match=r"channels that cancel each other out.*Give one"):
            load_audio(path)
    for second in (wav[1], 0 * wav[0], -0.5 * wav[0]):
        write(wav[0], second)
        assert np.abs(load_audio(path)).max() > 0.2
    write(0 * wav[0], 0 * wav[0])
    assert not load_audio(path).any()


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_in_blocks_is_resampling_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(decoders, "BLOCK", 10_000)
    wav = np.random.default_rng(0).uniform(-1, 1, 3 * rate).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wav, rate, "FLOAT")
    expected = soxr.resample(wav, rate, SAMPLE_RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "opus", "m4a", "webm"])
def test_recordings_over_max_seconds_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(decoders, "BLOCK", 4_000)
    path = recording(tmp_path, suffix)
    assert len(load_audio(path, max_seconds=2.2)) > 1.9 * SAMPLE_RATE
    with pytest.raises(UserError, match=f"tone.{suffix} is longer than 1.5 s"):
        load_audio(path, max_seconds=1.5)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        *((f"empty.{suffix}", b"", "is empty") for suffix in ("wav", "mp3", "ogg", "m4a", "webm")),
        ("text.wav", b"this is no sound", "not readable as sound"),
        ("text.txt", b"hello\n" * 100, "not readable as sound"),
        ("random.mp3", np.random.default_rng(0).bytes(5_000), "not readable|damaged"),
        ("picture.m4a", b"\x89PNG\r\n\x1a\n" + bytes(100), "not readable as sound"),
        ("header.wav", np.zeros(0, np.float32), "holds no samples"),
        ("nan.wav", np.array([0.0, np.nan], np.float32), "NaN"),
        ("infinite.wav", np.array([0.0, np.inf], np.float32), "infinite"),
        ("huge.wav", np.array([0.0, -1e10], np.float32), r"too large samples \(up to 1e\+10\)"),
        ("absent.wav", None, "No audio file"),
        (300 * "a" + ".wav", None, "No audio file"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path, name, data, message):
    path = tmp_path / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data is not None:
        soundfile.write(path, data, 16_000, "FLOAT")
    with pytest.raises(UserError, match=message) as error:
        load_audio(path)
    assert name in str(error.value)


def test_a_rate_of_few_hz_is_refused(tmp_path):
    """A second of sound at 16 kHz would become four hours."""
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000), 1)
    with pytest.raises(UserError, match="has 1 Hz; expected a sampling rate of at least 1000"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("url", ["http://host/a.wav", "file:///a.wav", "zz://bucket/a.wav"])
def test_a_url_that_cannot_be_read_is_refused(url):
    with pytest.raises(UserError, match=f"{url}: .* is no file system; give a local path"):
        load_audio(url)


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(audio._output_formats()))
def test_every_format_is_written(tmp_path, suffix):
    assert suffix in audio.SUFFIXES
    path = tmp_path / "missing" / f"tone{suffix.upper()}"
    save_audio(path, tone(2, 16_000))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    wav = load_audio(path)
    assert len(wav) == 2 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav)).argmax() == 880
    if suffix not in (".mp3", ".ogg", ".oga", ".opus"):
        np.testing.assert_allclose(wav, tone(2, 16_000), atol=1e-4)


def test_common_formats_are_written():
    asked = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au", ".caf"}
    assert asked <= audio._output_formats().keys()


@pytest.mark.slow
def test_a_long_ogg_is_written(tmp_path):
    """libsndfile's encoder overflows the stack if it gets minutes in one call."""
    save_audio(tmp_path / "long.ogg", np.zeros(20 * 60 * SAMPLE_RATE, np.float32))
    assert soundfile.info(tmp_path / "long.ogg").frames == 20 * 60 * SAMPLE_RATE


def test_round_trip_clips(tmp_path):
    save_audio(tmp_path / "loud.wav", 3 * tone(0.5, 16_000))
    expected = np.clip(3 * tone(0.5, 16_000), -1, 1)
    np.testing.assert_allclose(load_audio(tmp_path / "loud.wav"), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answer", r"no suffix.*expected one of .*\.flac, .*\.mp3, .*\.ogg, .*\.wav"),
        ("answer.txt", r"the suffix '\.txt'.*expected one of"),
        ("answer.m4a", r"the suffix '\.m4a'"),
        (".wav", "no suffix"),
        ("folder.wav", "folder"),
        ("file.txt/answer.wav", "file.txt is a file"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path, name, message):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file.txt").write_text("")
    for function in (check_output, lambda path: save_audio(path, tone(0.1, 16_000))):
        with pytest.raises(UserError, match=message):
            function(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder.wav"]
