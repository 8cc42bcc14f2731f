"""Every format is read, by libsndfile or by FFmpeg."""

import io

import av
import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, SUFFIXES, load_audio
from tests.speech.audio_files.recordings import FORMATS, recording, stereo_noise, tone, write_ffmpeg


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path, suffix):
    path = recording(tmp_path, suffix)
    assert path.suffix in (
        *SUFFIXES,
        ".avi",
        ".flv",
        ".nut",
    )  # Videos are read, but not searched for.
    wav, from_open_file = load_audio(path), load_audio(io.BytesIO(path.read_bytes()))
    assert wav.dtype == np.float32 and wav.ndim == 1
    # Encoders add a little at both ends.
    assert abs(len(wav) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav[:SAMPLE_RATE])).argmax() == 440
    np.testing.assert_allclose(from_open_file, wav, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
def test_a_name_that_is_no_utf_8(tmp_path, suffix):
    path = f"{tmp_path}/caf\udce9.{suffix}"
    recording(tmp_path, suffix).rename(path)
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


def test_a_voc_of_several_blocks_has_no_clicks(tmp_path):
    wav = stereo_noise()[:1]
    path = write_ffmpeg(tmp_path / "a.voc", "voc", "pcm_s16le", 16_000, wav)
    np.testing.assert_array_equal(load_audio(path), wav[0])


def test_a_playlist_opens_no_other_file(tmp_path):
    recording(tmp_path, "aac")
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXTINF:2,\ntone.aac\n#EXT-X-ENDLIST\n"),
        ("list.wav", "ffconcat version 1.0\nfile tone.aac\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="not readable as sound"):
            load_audio(tmp_path / name)


def test_a_title_that_is_not_utf8_is_no_obstacle(tmp_path):
    path = tmp_path / "a.flv"
    with av.open(path, "w", format="flv") as output:
        stream = output.add_stream("libmp3lame", rate=44_100, layout="mono")
        output.metadata["title"] = "Caf\u00e9"
        frame = av.AudioFrame.from_ndarray(tone(2, 44_100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for piece in (frame, None):
            output.mux(stream.encode(piece))
    data = path.read_bytes()
    assert "Caf\u00e9".encode() in data
    latin_1 = data.replace("Caf\u00e9".encode(), "Caf\u00e9 ".encode("latin-1"))
    np.testing.assert_array_equal(load_audio(io.BytesIO(latin_1)), load_audio(path))


def test_an_unknown_codec_is_named(tmp_path):
    data = recording(tmp_path, "mka").read_bytes().replace(b"A_FLAC", b"A_OURS")
    with pytest.raises(UserError, match="holds sound of a codec that FFmpeg doesn't know"):
        load_audio(io.BytesIO(data))
