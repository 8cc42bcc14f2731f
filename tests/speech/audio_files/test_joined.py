"""Recordings that were joined byte by byte are read to their end."""

import io

import numpy as np
import pytest
import soundfile

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.audio_files.joined import starts
from tests.speech.audio_files.recordings import (
    FORMATS,
    joined,
    recording,
    stereo_noise,
    tone,
    wav_with,
    write_ffmpeg,
)

# Formats with long first bytes: one of them is found behind any other recording.
MARKED = sorted({*FORMATS} - {"wv", "ac3", "aac", "mp3"})


def test_joined_recordings_of_two_formats_are_read_or_refused(tmp_path):
    recordings = {suffix: recording(tmp_path, suffix, 0.2).read_bytes() for suffix in FORMATS}
    seconds = {name: len(load_audio(io.BytesIO(data))) for name, data in recordings.items()}
    for first in FORMATS:
        for second in MARKED:
            data = io.BytesIO(recordings[first] + recordings[second])
            if first == "wv":
                with pytest.raises(UserError, match="damaged"):
                    load_audio(data)
            elif first != second:
                expected = seconds[first] + seconds[second]
                assert abs(len(load_audio(data)) - expected) < 0.1 * SAMPLE_RATE, (first, second)


def test_there_may_be_64_of_them():
    second = wav_with(32_000, bytes(32_000)).getvalue()
    assert len(load_audio(io.BytesIO(64 * second))) == 64 * SAMPLE_RATE
    many = [65 * second, 10_000 * b"#!AMR\n", 10_000 * (b"fLaC\0\0\0\x22" + bytes(9))]
    for data in many:
        with pytest.raises(UserError, match="the recording holds more than 64 recordings, joined"):
            load_audio(io.BytesIO(data))


def test_there_may_be_64_streams(tmp_path):
    first = recording(tmp_path, "amr", 1.0).read_bytes()
    pair = b"".join(recording(tmp_path, suffix, 1.0).read_bytes() for suffix in ("aac", "ac3"))
    assert 7 * SAMPLE_RATE < len(load_audio(io.BytesIO(first + 3 * pair))) < 8 * SAMPLE_RATE
    with pytest.raises(UserError, match="holds more than 64 recordings"):
        load_audio(io.BytesIO(first + 32 * pair))


@pytest.mark.parametrize("codec", ["mp3", "lame", "aac", "ac3", "eac3", "mp2", "wv"])
def test_frames_behind_any_format_are_read(tmp_path, codec):
    """MP3, AAC, AC-3 and WavPack have no signature; their frames are followed from the end."""
    other = {
        "lame": ("mp3", "libmp3lame", 44_100),  # With an ID3 tag in front.
        "eac3": ("eac3", "eac3", 48_000),
        "mp2": ("mp2", "mp2", 48_000),
    }
    if codec in other:
        container, name, rate = other[codec]
        wav = tone(1.5, rate)[None]
        second = write_ffmpeg(tmp_path / "second", container, name, rate, wav).read_bytes()
    else:
        second = recording(tmp_path, codec, 1.5).read_bytes()
    tag = b"TAG" + bytes(125)
    for first in {*FORMATS} - {codec, "mp3"}:
        data = recording(tmp_path, first, 0.5).read_bytes() + second + tag * (codec == "lame")
        wav = load_audio(io.BytesIO(data))
        assert abs(len(wav) - 2 * SAMPLE_RATE) < 0.15 * SAMPLE_RATE, first
        assert np.abs(wav[-SAMPLE_RATE:]).max() < 0.75
        assert np.abs(np.fft.rfft(wav[-SAMPLE_RATE:])).argmax() == 440


@pytest.mark.parametrize("codec", ["mp3", "aac", "ac3", "wv"])
@pytest.mark.parametrize("first", ["wav", "rf64", "w64", "aiff", "au", "caf", "m4a", "mov", "avi"])
def test_frames_that_are_cut_off_behind_another_format(tmp_path, first, codec):
    data = recording(tmp_path, first, 0.5).read_bytes() + recording(tmp_path, codec).read_bytes()
    try:
        assert len(load_audio(io.BytesIO(data[:-20]))) > 2.4 * SAMPLE_RATE
    except UserError as error:
        assert "cut off" in str(error)


def test_a_wav_from_a_pipe_before_an_mp3(tmp_path):
    first = wav_with(0xFFFFFFFF, bytes(16_000)).getvalue()
    first = first[:4] + b"\xff" * 4 + first[8:]
    data = first + recording(tmp_path, "mp3", 1.5).read_bytes()
    assert abs(len(load_audio(io.BytesIO(data))) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("wav", "libmp3lame", {}),
        ("wav", "ac3", {}),
        ("w64", "libmp3lame", {}),
        ("mp4", "libmp3lame", {"movflags": "faststart"}),
        ("mp4", "ac3", {"movflags": "frag_keyframe"}),
        ("mov", "ac3", {"movflags": "faststart"}),
        ("caf", "ac3", {}),
        ("avi", "ac3", {}),
        ("matroska", "libmp3lame", {"live": "1"}),
        ("flv", "libmp3lame", {}),
        ("mpegts", "libmp3lame", {}),
    ],
)
def test_frames_within_a_container_are_one_recording(tmp_path, container, codec, options):
    path = write_ffmpeg(tmp_path / "a", container, codec, 48_000, tone(2, 48_000)[None], options)
    data = path.read_bytes()
    assert starts(data) == [0]
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("container", ["ogg", "matroska"])
def test_flac_within_another_format_is_one_recording(tmp_path, container):
    wav = stereo_noise()
    path = write_ffmpeg(tmp_path / "a", container, "flac", 16_000, wav)
    assert path.read_bytes().find(b"fLaC") > 0
    np.testing.assert_array_equal(load_audio(path), wav.mean(axis=0))


def test_bytes_behind_an_ogg_recording_are_refused(tmp_path):
    data = recording(tmp_path, "ogg").read_bytes()
    assert len(load_audio(io.BytesIO(data + bytes(500)))) == 2 * SAMPLE_RATE
    with pytest.raises(UserError, match="has 6 bytes after its last Ogg page; remove them"):
        load_audio(io.BytesIO(data + b"\xff\xfbmore\0"))


def test_joined_wavpack_is_refused(tmp_path):
    first = recording(tmp_path, "wv")
    with pytest.raises(UserError, match="damaged"):
        load_audio(joined(first, first))


@pytest.mark.parametrize("suffix", sorted({*FORMATS} - {"wv"}))
def test_joined_recordings_are_read_to_their_end(tmp_path, suffix):
    first = recording(tmp_path, suffix)
    for count in (2, 3):
        path = joined(first, joined(first, first) if count == 3 else first)
        wav = load_audio(path)
        assert abs(len(wav) - count * len(load_audio(first))) < 0.1 * count * SAMPLE_RATE
        assert np.abs(wav[-SAMPLE_RATE // 2 :]).max() > 0.4


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64", "nist"])
def test_joined_recordings_are_exact(tmp_path, suffix):
    parts = [stereo_noise(seconds) for seconds in (0.3, 0.7)]
    for name, wav in zip("ab", parts):
        file = tmp_path / f"{name}.{suffix}"
        soundfile.write(file, wav.T, 16_000, "PCM_24", format=suffix.upper())
    path = joined(tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(load_audio(path), np.concatenate(parts, axis=1).mean(axis=0))


def test_joined_recordings_of_other_rates(tmp_path):
    for name, rate in (("a", 8_000), ("b", 44_100)):
        soundfile.write(tmp_path / f"{name}.flac", tone(1, rate), rate)
    wav = load_audio(joined(tmp_path / "a.flac", tmp_path / "b.flac"))
    assert len(wav) == 2 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav)).argmax() == 880


def test_the_second_of_two_joined_recordings_is_checked_too(tmp_path):
    first = recording(tmp_path, "wav")
    path = joined(first, first)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut off: its header states 64000 bytes of sound, 63000"):
        load_audio(path)


def test_joined_mp3_with_tags_between(tmp_path):
    first = write_ffmpeg(tmp_path / "a.mp3", "mp3", "libmp3lame", 44_100, tone(2, 44_100)[None])
    assert first.read_bytes()[:3] == b"ID3"
    assert abs(len(load_audio(joined(first, first))) - 4 * SAMPLE_RATE) < 0.2 * SAMPLE_RATE
