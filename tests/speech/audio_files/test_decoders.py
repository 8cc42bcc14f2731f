"""Every format is read, by libsndfile or by FFmpeg."""

import io

import av
import numpy as np
import pytest
import soundfile

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, SUFFIXES, load_audio
from speechgpt_jax.speech.audio_files import decoders
from tests.speech.audio_files.recordings import (
    FORMATS,
    recording,
    stereo_noise,
    tone,
    wav_with,
    write_ffmpeg,
)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path, suffix):
    path = recording(tmp_path, suffix)
    assert path.suffix in SUFFIXES
    wav, from_open_file = load_audio(path), load_audio(io.BytesIO(path.read_bytes()))
    assert wav.dtype == np.float32 and wav.ndim == 1
    # Encoders add a little at both ends.
    assert abs(len(wav) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav[:SAMPLE_RATE])).argmax() == 440
    np.testing.assert_allclose(from_open_file, wav, atol=1e-6)


# FFmpeg's format, codec, rate in Hz and suffixes.
OTHERS = (
    ("adts", "aac", 44_100, ".adts"),
    ("aiff", "pcm_s16be", 16_000, ".afc"),
    ("asf", "wmav2", 44_100, ".asf .wmv"),
    ("dvd", "mp2", 48_000, ".dvd"),
    ("eac3", "eac3", 48_000, ".eac3 .ec3"),
    ("f4v", "aac", 44_100, ".f4v"),
    ("ipod", "aac", 44_100, ".m4b .m4v"),
    ("ircam", "pcm_s16le", 16_000, ".ircam .sf"),
    ("ismv", "aac", 44_100, ".isma .ismv"),
    ("latm", "aac", 44_100, ".latm .loas"),
    ("matroska", "flac", 16_000, ".mkv"),
    ("mmf", "adpcm_yamaha", 8_000, ".mmf"),
    ("mp2", "mp2", 16_000, ".mp2 .m2a .mpa .mpga"),
    ("mpeg", "mp2", 48_000, ".mpg .mpeg"),
    ("mpegts", "aac", 44_100, ".ts .m2t .m2ts .mts"),
    ("mxf_opatom", "pcm_s16le", 48_000, ".mxf"),
    ("ogv", "flac", 16_000, ".ogv"),
    ("rm", "ac3", 48_000, ".ra .rm"),
    ("sox", "pcm_s32le", 16_000, ".sox"),
    ("spx", "libopus", 48_000, ".spx"),
    ("swf", "libmp3lame", 44_100, ".swf"),
    ("vob", "mp2", 48_000, ".vob"),
    ("wtv", "ac3", 48_000, ".wtv"),
)


@pytest.mark.parametrize(("container", "codec", "rate", "suffixes"), OTHERS)
def test_other_formats_are_read_and_found(tmp_path, container, codec, rate, suffixes):
    path = write_ffmpeg(tmp_path / "a", container, codec, rate, tone(2, rate)[None])
    wav = load_audio(path)
    assert abs(len(wav) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav[:SAMPLE_RATE])).argmax() == 440
    assert {*suffixes.split()} <= {*SUFFIXES}


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
def test_a_name_that_is_no_utf_8(tmp_path, suffix):
    path = f"{tmp_path}/caf\udce9.{suffix}"
    recording(tmp_path, suffix).rename(path)
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("suffix", ["raw", "au", "snd", "gsm", "vox"])
def test_a_suffix_is_not_believed(tmp_path, suffix):
    """libsndfile takes everything of these names for sound without a header."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(recording(tmp_path, "wav").read_bytes())
    assert len(load_audio(path)) == 2 * SAMPLE_RATE
    path.write_bytes(100 * b"<!DOCTYPE html><title>404 Not Found</title>")
    with pytest.raises(UserError, match="not readable as sound"):
        load_audio(path)


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


def _many_channels(path, channels):
    """The same noise in every channel."""
    wav = np.repeat(stereo_noise()[0][:, None], channels, axis=1)
    if path.suffix == ".mka":
        layout, samples = f"{channels} channels", np.rint(wav * 2**15).astype(np.int16)
        with av.open(path, "w", format="matroska") as output:
            stream = output.add_stream("pcm_s16le", rate=16_000, layout=layout)
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts = 16_000, 0
            for piece in (frame, None):
                output.mux(stream.encode(piece))
    else:
        soundfile.write(path, wav, 16_000)
    return path


@pytest.mark.parametrize("suffix", ["wav", "mka"])
def test_32_channels_are_read_and_more_are_refused(tmp_path, suffix):
    path = _many_channels(tmp_path / f"a.{suffix}", 24)
    np.testing.assert_allclose(load_audio(path), stereo_noise()[0], atol=1e-4)
    with pytest.raises(UserError, match="has 33 channels; expected at most 32"):
        load_audio(_many_channels(path, 33))


def test_a_block_has_as_many_samples_whatever_the_channels(tmp_path, monkeypatch):
    """Silence in hundreds of channels takes few bytes of a file, and took gigabytes of memory."""
    monkeypatch.setattr(decoders, "BLOCK", 1_000)
    data = _many_channels(tmp_path / "a.wav", 10).read_bytes()
    blocks = [wav for wav, _ in decoders.decoded(decoders.Recording(data, None))]
    assert {len(wav) for wav in blocks} == {100}
    np.testing.assert_allclose(np.concatenate(blocks), stereo_noise()[0], atol=1e-4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_decoding_ends_when_its_checkpoint_raises(tmp_path, suffix):
    path, calls = recording(tmp_path, suffix), []
    load_audio(path, checkpoint=lambda: calls.append(1))
    assert calls
    with pytest.raises(ZeroDivisionError):
        load_audio(path, checkpoint=lambda: 1 / 0)


def test_the_checkpoint_is_passed_before_each_recording():
    calls = []
    with pytest.raises(UserError):
        load_audio(io.BytesIO(60 * b"#!AMR\n"), checkpoint=lambda: calls.append(1))
    wavs = io.BytesIO(9 * wav_with(2_000, bytes(2_000)).getvalue())
    load_audio(wavs, checkpoint=lambda: calls.append(1))
    assert len(calls) >= 1 + 2 * 9
