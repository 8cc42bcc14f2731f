"""Recordings that are cut off or damaged are refused, and whole ones are not."""

import io
import re
import struct

import av
import numpy as np
import pytest
import soundfile

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from tests.speech.audio_files.recordings import (
    FORMATS,
    recording,
    stereo_noise,
    tone,
    wav_with,
    write_ffmpeg,
)


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_a_page_that_is_missing_from_an_ogg_is_noticed(tmp_path, codec):
    """FLAC continues after the gap, and Opus fills it with sound of its own."""
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


# Tags at the end of an MP3; APE's is 32 bytes of content, and its footer.
ID3 = b"TAG" + bytes(125)
APE = bytes(32) + b"APETAGEX" + struct.pack("<4I8x", 2_000, 64, 1, 0)
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
    ("name", "subtype"),
    [
        *((name, None) for name in ("W64", "NIST", "AVR", "SVX", "MAT5", "MPC2K", "WVE")),
        *((name, None) for name in ("WAV", "RF64", "AIFF", "AU", "CAF")),
        *(("W64", subtype) for subtype in ("PCM_24", "IMA_ADPCM", "GSM610")),
        ("NIST", "ULAW"),
    ],
)
def test_bytes_behind_the_samples_are_no_sound(name, subtype):
    file = io.BytesIO()
    rate = {"WVE": 8_000, "MPC2K": 44_100}.get(name, 16_000)
    soundfile.write(file, tone(1, rate), rate, subtype, format=name)
    wav = load_audio(io.BytesIO(file.getvalue()))
    for more in (bytes(7), b"TAG" * 999, bytes(64_000)):
        np.testing.assert_array_equal(load_audio(io.BytesIO(file.getvalue() + more)), wav)


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


@pytest.mark.parametrize("suffix", ["wv", "aac", "amr", "tta"])
def test_a_stream_that_is_cut_within_a_packet_is_refused(tmp_path, suffix):
    """These formats state no length; the error is found in the packet that was cut."""
    data = recording(tmp_path, suffix, seconds=6.0).read_bytes()
    with pytest.raises(UserError, match="cut off"):
        load_audio(io.BytesIO(data[: len(data) * 2 // 3 - 7]))


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("mp3", "libmp3lame", 16_000),
        ("mp3", "libmp3lame", 44_100),  # Some of its frames have a byte of padding.
        ("mp2", "mp2", 44_100),
        ("ac3", "ac3", 44_100),
        ("eac3", "eac3", 48_000),
        ("adts", "aac", 44_100),
    ],
)
def test_frames_are_read_whole_or_refused(tmp_path, container, codec, rate):
    """They state no length; only their last frame shows that they were cut off."""
    options = {"write_xing": "0"} if container == "mp3" else None
    path = write_ffmpeg(tmp_path / "a", container, codec, rate, tone(2, rate)[None], options)
    data = path.read_bytes()
    # AC-3 has no tags.
    endings = (b"",) if "ac3" in codec else (b"", ID3, APE, APE + ID3)
    for ending in endings:
        assert len(load_audio(io.BytesIO(data + ending))) >= 2 * SAMPLE_RATE
        for cut in (1, 2, 50, 100, len(data) // 2 + 5):
            with pytest.raises(UserError, match="is cut off: its last frame is not complete"):
                load_audio(io.BytesIO(data[:-cut] + ending))
    if codec in ("libmp3lame", "mp2"):
        load_audio(io.BytesIO(data + bytes(500)))  # Padding.
        other = write_ffmpeg(tmp_path / "b", container, codec, 48_000, tone(2, 48_000)[None])
        with pytest.raises(UserError, match="is cut off: its last frame is not complete"):
            load_audio(io.BytesIO(other.read_bytes() + data[:-50]))


@pytest.mark.parametrize(
    ("container", "codec", "cuts"),
    [
        ("mpegts", "mp2", (1, 100, 188, 5 * 188)),
        ("mpegts", "aac", (1, 100, 376)),
        ("mpegts", "libopus", (1, 188)),
        ("mpeg", "mp2", (4_000, 30_000)),
        ("swf", "libmp3lame", (5, 37)),
    ],
)
def test_a_packet_that_is_cut_off_is_refused(tmp_path, container, codec, cuts):
    rate = 44_100 if codec in ("aac", "libmp3lame") else 48_000
    path = write_ffmpeg(tmp_path / "a", container, codec, rate, tone(2, rate)[None])
    for cut in cuts:
        with pytest.raises(UserError, match="is cut off: its last packet"):
            load_audio(io.BytesIO(path.read_bytes()[:-cut]))


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe"}])
def test_m4a_with_its_index_in_front(tmp_path, options):
    path = tmp_path / "a.m4a"
    write_ffmpeg(path, "mp4", "aac", 44_100, tone(2, 44_100)[None], options)
    assert abs(len(load_audio(path)) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match="cut off"):
        load_audio(path)


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
