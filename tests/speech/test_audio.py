"""Sound in and out: every format is read whole or refused with the reason."""

import io
import re
import struct

import av
import numpy as np
import pytest
import soundfile
import soxr

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.audio import SAMPLE_RATE, SUFFIXES, check_output, load_audio, save_audio
from speechgpt_jax.speech.audio_files import decoders
from speechgpt_jax.speech.audio_files import joined as joined_files

LIBSNDFILE = (
    "wav",
    "flac",
    "ogg",
    "mp3",
    "opus",
    "aiff",
    "au",
    "caf",
    "w64",
    "nist",
    "voc",
    "rf64",
    "avr",
)
# Suffix -> FFmpeg's format, codec and sample rate in Hz.
FFMPEG = {
    "m4a": ("mp4", "aac", 44_100),
    "mp4": ("mp4", "alac", 44_100),
    "mov": ("mov", "pcm_s16le", 16_000),
    "3gp": ("3gp", "libopencore_amrnb", 8_000),
    "aac": ("adts", "aac", 22_050),
    "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "flac", 16_000),
    "wma": ("asf", "wmav2", 44_100),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "ac3": ("ac3", "ac3", 48_000),
    "wv": ("wv", "wavpack", 16_000),
    "tta": ("tta", "tta", 16_000),
    "avi": ("avi", "pcm_s16le", 16_000),
    "flv": ("flv", "libmp3lame", 44_100),
    "nut": ("nut", "pcm_s16le", 16_000),
}
FORMATS = (*LIBSNDFILE, *FFMPEG)


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype("float32")


def write_ffmpeg(path, container, codec, rate, wav, options=None):
    """Encodes float32 [channels, samples] at `rate` with FFmpeg."""
    layout = ("mono", "stereo")[len(wav) - 1]
    with av.open(path, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 64_000
        if codec in ("wavpack", "tta"):  # Their first formats have 8 bits.
            stream.codec_context.format = {"wavpack": "s16p", "tta": "s16"}[codec]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wav), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            output.mux(stream.encode(piece))
    return path


def recording(folder, suffix, seconds=2.0):
    """A tone in the format of that suffix."""
    path = folder / f"tone.{suffix}"
    if suffix in FFMPEG:
        container, codec, rate = FFMPEG[suffix]
        return write_ffmpeg(path, container, codec, rate, tone(seconds, rate)[None])
    name, subtype = ("OGG", "OPUS") if suffix == "opus" else (suffix.upper(), None)
    soundfile.write(path, tone(seconds, 16_000), 16_000, subtype, format=name)
    return path


def joined(first, second):
    path = first.with_stem("joined")
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def stereo_noise(seconds=0.3):
    """Samples that 16 bits hold exactly, float32 [2, samples]."""
    rng = np.random.default_rng(0)
    return rng.integers(-(2**15), 2**15, (2, round(seconds * 16_000))).astype(np.float32) / 2**15


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path, suffix):
    path = recording(tmp_path, suffix)
    assert path.suffix in (
        *SUFFIXES,
        ".avi",
        ".flv",
        ".nut",
    )  # Videos are read, but not searched for.
    wav, of_open_file = load_audio(path), load_audio(io.BytesIO(path.read_bytes()))
    assert wav.dtype == np.float32 and wav.ndim == 1
    # Encoders add a little at both ends.
    assert abs(len(wav) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert np.abs(np.fft.rfft(wav[:SAMPLE_RATE])).argmax() == 440
    np.testing.assert_allclose(of_open_file, wav, atol=1e-6)


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


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
def test_a_name_that_is_no_utf_8(tmp_path, suffix):
    path = f"{tmp_path}/caf\udce9.{suffix}"
    recording(tmp_path, suffix).rename(path)
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_in_blocks_is_resampling_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(decoders, "BLOCK", 10_000)
    wav = np.random.default_rng(0).uniform(-1, 1, 3 * rate).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wav, rate, "FLOAT")
    expected = soxr.resample(wav, rate, SAMPLE_RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), expected, atol=1e-6)


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
    assert joined_files.starts(data) == [0]
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


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_a_page_that_is_missing_from_an_ogg_is_noticed(tmp_path, codec):
    """FLAC goes on after the gap, and Opus fills it with sound of its own."""
    rate = {"flac": 16_000, "libopus": 48_000}[codec]
    options = {"page_duration": "500000"}
    wav = np.random.default_rng(0).uniform(-1, 1, (1, 6 * rate)).astype(np.float32)
    path = write_ffmpeg(tmp_path / "a.ogg", "ogg", codec, rate, wav, options)
    data = path.read_bytes()
    pages = [found.start() for found in re.finditer(b"OggS", data)]
    assert len(pages) > 6 and abs(len(load_audio(path)) - 6 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    with pytest.raises(UserError, match=f"an Ogg page is missing before byte {pages[4]}"):
        load_audio(io.BytesIO(data[: pages[4]] + data[pages[5] :]))
    damaged = bytearray(data)
    damaged[pages[4] + 200] ^= 1
    with pytest.raises(UserError, match=f"the Ogg page at byte {pages[4]} is wrong"):
        load_audio(io.BytesIO(damaged))
    damaged[pages[4]] = 0
    with pytest.raises(UserError, match=f"no Ogg page begins at byte {pages[4]}"):
        load_audio(io.BytesIO(damaged))
    # As a recording of a radio stream: its headers, then pages from its middle.
    load_audio(io.BytesIO(data[: pages[2]] + data[pages[4] :]))


@pytest.mark.parametrize("suffix", ["wv", "tta", "flac"])
def test_damage_is_not_decoded_as_noise(tmp_path, suffix):
    data = bytearray(recording(tmp_path, suffix).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    with pytest.raises(UserError, match="damaged"):
        load_audio(io.BytesIO(data))


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


CUT = sorted({*FORMATS} - {"wv", "tta", "ac3", "aac", "amr"})


@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("suffix", CUT)
def test_a_recording_that_is_cut_off_is_refused(tmp_path, suffix, share):
    data = recording(tmp_path, suffix).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: round(share * len(data))])
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(UserError, match=r"cut off|damaged|not readable"):
            load_audio(source)


@pytest.mark.parametrize("name", ["MAT4", "MAT5", "WVE", "MPC2K"])
def test_rarer_formats_that_are_cut_off_are_refused(name):
    file = io.BytesIO()
    rate = {"WVE": 8_000, "MPC2K": 44_100}.get(name, 16_000)
    soundfile.write(file, tone(1, rate), rate, format=name)
    file.seek(0)
    assert len(load_audio(file)) > 0
    with pytest.raises(UserError, match=rf"is cut off: its header states {rate} samples of sound"):
        load_audio(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("matroska", "flac"), ("matroska", "pcm_s16le"), ("asf", "ac3"), ("asf", "aac")],
)
def test_one_of_two_streams_that_are_cut_off_is_refused(tmp_path, container, codec):
    path = tmp_path / "a"
    with av.open(path, "w", format=container) as output:
        streams = [output.add_stream(codec, rate=48_000, layout="mono") for _ in range(2)]
        for i in range(94):  # The first stream has half the length of the second.
            for stream in streams[i // 47 :]:
                stream.codec_context.open(strict=False)
                frame = av.AudioFrame.from_ndarray(
                    tone(1024 / 48_000, 48_000)[None], format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts = 48_000, i * 1024
                for piece in av.AudioResampler(stream.format, "mono", 48_000).resample(frame):
                    output.mux(stream.encode(piece))
        for stream in streams:
            output.mux(stream.encode(None))
    data = path.read_bytes()
    assert abs(len(load_audio(path)) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    for share in (0.3, 0.8):
        with pytest.raises(UserError, match="cut off"):
            load_audio(io.BytesIO(data[: round(share * len(data))]))


def test_a_voc_of_several_blocks_has_no_clicks(tmp_path):
    wav = stereo_noise()[:1]
    path = write_ffmpeg(tmp_path / "a.voc", "voc", "pcm_s16le", 16_000, wav)
    np.testing.assert_array_equal(load_audio(path), wav[0])


@pytest.mark.parametrize("suffix", ["wv", "aac", "amr", "tta"])
def test_a_stream_that_is_cut_within_a_packet_is_refused(tmp_path, suffix):
    """These formats state no length; the error is found in the packet that was cut."""
    data = recording(tmp_path, suffix, seconds=6.0).read_bytes()
    with pytest.raises(UserError, match="cut off"):
        load_audio(io.BytesIO(data[: len(data) * 2 // 3 - 7]))


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe"}])
def test_m4a_with_its_index_in_front(tmp_path, options):
    path = tmp_path / "a.m4a"
    write_ffmpeg(path, "mp4", "aac", 44_100, tone(2, 44_100)[None], options)
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match="cut off"):
        load_audio(path)


def wav_with(data_size: int, samples: bytes) -> io.BytesIO:
    """A 16-bit wav whose header states `data_size` bytes of sound."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", data_size) + samples
    return io.BytesIO(b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body)


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_read_whole(stated):
    wav = stereo_noise()[0]
    samples = (wav * 2**15).astype("<i2").tobytes()
    np.testing.assert_array_equal(load_audio(wav_with(stated, samples)), wav)


def test_a_flac_from_a_pipe_is_read_whole(tmp_path):
    wav = stereo_noise()[0]
    soundfile.write(tmp_path / "a.flac", wav, 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # The number of samples, 36 bits.
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(load_audio(io.BytesIO(data)), wav)


@pytest.mark.parametrize("stated", [96_002, 200_000, 2**30])
def test_a_wav_whose_header_states_more_is_refused(stated):
    with pytest.raises(UserError, match=f"cut off: its header states {stated} bytes"):
        load_audio(wav_with(stated, bytes(96_000)))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0LIST\4\0\0\0INFO"])
def test_an_odd_data_chunk_is_read(padding):
    assert len(load_audio(wav_with(4_001, bytes(4_001) + padding))) == 2_000


@pytest.mark.parametrize("hours", [10, 100])
def test_a_small_file_that_claims_hours_takes_little_memory(tmp_path, hours):
    soundfile.write(tmp_path / "a.flac", tone(1, 16_000), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    samples = hours * 3600 * 16_000
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4)
    with pytest.raises(UserError, match="cut off"):
        load_audio(io.BytesIO(data))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "opus", "m4a", "webm"])
def test_recordings_over_max_seconds_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(decoders, "BLOCK", 4_000)
    path = recording(tmp_path, suffix)
    assert len(load_audio(path, max_seconds=2.2)) > 1.9 * SAMPLE_RATE
    with pytest.raises(UserError, match=f"tone.{suffix} is longer than 1.5 s"):
        load_audio(path, max_seconds=1.5)


def test_a_playlist_opens_no_other_file(tmp_path):
    recording(tmp_path, "aac")
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXTINF:2,\ntone.aac\n#EXT-X-ENDLIST\n"),
        ("list.wav", "ffconcat version 1.0\nfile tone.aac\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="not readable as sound"):
            load_audio(tmp_path / name)


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
