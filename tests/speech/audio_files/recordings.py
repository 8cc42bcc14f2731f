"""Recordings of a tone or of noise in every format that is read."""

import io
import struct

import av
import numpy as np
import soundfile

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


def wav_with(data_size: int, samples: bytes) -> io.BytesIO:
    """A 16-bit wav whose header states `data_size` bytes of sound."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", data_size) + samples
    return io.BytesIO(b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body)
