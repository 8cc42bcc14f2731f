"""Encoders are checked by decoding: with FFmpeg, libsndfile and the struct of a wav."""

import io
import struct

import numpy as np
import pytest
import soundfile
import soxr

from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import sound
from speechgpt_jax.speech.audio import SAMPLE_RATE

CONTAINERS = ("mp3", "opus", "aac", "flac", "wav")


def tone(seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.4 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def chunks(wav: np.ndarray) -> list[np.ndarray]:
    """Pieces as a vocoder yields them, one of which is empty."""
    return [wav[:320], wav[320:320], wav[320:8320], wav[8320:]]


def streamed(format: str, wav: np.ndarray) -> list[bytes]:
    encoder = sound.Encoder(format)
    return [*map(encoder.encode, chunks(wav)), encoder.finish()]


@pytest.mark.parametrize("format", CONTAINERS)
@pytest.mark.parametrize("is_whole", [False, True])
def test_what_is_encoded_can_be_decoded(format, is_whole):
    wav = tone(1.5)
    data = sound.encode_whole(format, chunks(wav)) if is_whole else b"".join(streamed(format, wav))
    decoded = sound.decode(data, max_seconds=10)
    # Encoders pad by up to some frames of about 50 ms.
    assert len(wav) - 100 <= len(decoded) <= len(wav) + 0.12 * SAMPLE_RATE
    # The encoder's delay moves the tone; its strength at 440 Hz remains.
    middle = decoded[4000:20_000] * np.hanning(16_000)
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) == 440
    assert spectrum[440] / 4000 == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("format", ["pcm", "pcm16"])
def test_pcm_is_the_resampled_sound(format):
    wav = tone(1)
    samples = np.frombuffer(b"".join(streamed(format, wav)), "<i2") / 32767
    expected = soxr.resample(wav, SAMPLE_RATE, sound.API_RATE)
    np.testing.assert_allclose(samples, expected, atol=1e-3)


def test_a_streamed_wav_has_one_header_of_unknown_size():
    first, *rest = streamed("wav", tone(1))
    assert struct.unpack("<I", first[4:8]) == struct.unpack("<I", first[40:44]) == (0xFFFFFFFF,)
    assert all(b"RIFF" not in data for data in rest)
    assert len(first) + sum(map(len, rest)) == 44 + 2 * sound.API_RATE


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_whole_recording_states_its_length(format):
    info = soundfile.info(io.BytesIO(sound.encode_whole(format, chunks(tone(1)))))
    assert (info.frames, info.samplerate, info.channels) == (sound.API_RATE, sound.API_RATE, 1)


@pytest.mark.parametrize("format", sound.FORMATS)
def test_bytes_come_before_the_end(format):
    encoder = sound.Encoder(format)
    assert b"".join(encoder.encode(tone(0.4)) for _ in range(3))


@pytest.mark.parametrize("format", CONTAINERS)
def test_a_reply_without_sound_ends_without_an_error(format):
    assert len(b"".join(streamed(format, np.zeros(0, np.float32)))) < 10_000


def test_pcm16_is_read():
    wav = tone(1)
    data = b"".join(streamed("pcm", wav))
    np.testing.assert_allclose(sound.decode_pcm16(data)[200:-200], wav[200:-200], atol=1e-2)
    with pytest.raises(UserError, match="3 bytes"):
        sound.decode_pcm16(b"abc")


def test_hours_in_few_bytes_are_refused():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    assert len(file.getvalue()) < 200_000
    with pytest.raises(UserError, match="the recording is longer than 30 s"):
        sound.decode(file.getvalue(), max_seconds=30)


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_absurd_rates_are_answered(rate):
    data = bytearray(sound.encode_whole("wav", [tone(1)]))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(UserError):
        sound.decode(bytes(data), max_seconds=30)


def test_what_is_no_sound_is_refused():
    with pytest.raises(UserError, match="the recording is not readable as sound"):
        sound.decode(b"GET / HTTP/1.1\r\n" * 100, max_seconds=30)
