"""Sound of requests and replies: bounded decoding, and encoding while it is synthesized.

    encoder = Encoder("mp3")
    for wav in wavs:                   # float32 [samples] at 16 kHz
        send(encoder.encode(wav))
    send(encoder.finish())

The API's sound has 24 kHz, as its clients expect; ours is resampled (soxr).
"""

import io
import struct
from collections.abc import Callable, Iterable

import av
import numpy as np
import soxr

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio

API_RATE = 24_000

# Format -> container and codec of FFmpeg; the formats without one are written here.
_CODECS = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
    "flac": ("flac", "flac"),
}
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
}
FORMATS = tuple(MEDIA_TYPES)
# Size in the header of a wav that is not known yet.
_UNKNOWN = 0xFFFFFFFF


def decode(
    data: bytes, max_seconds: float, checkpoint: Callable[[], None] = lambda: None
) -> np.ndarray:
    """A recording of any format -> float32 [samples], mono, 16 kHz.

    Decoding stops at `max_seconds`, whatever length the data claim, and if `checkpoint` raises,
    which is called again and again.

    Raises:
      UserError: it is not audio, damaged, or longer than `max_seconds`.
    """
    recording = io.BytesIO(data)
    recording.name = "the recording"  # In messages; what a client calls its file is not used.
    return load_audio(recording, max_seconds, checkpoint)


def decode_pcm16(data: bytes) -> np.ndarray:
    """Samples of `pcm16_samples` at 24 kHz -> float32 [samples] at 16 kHz."""
    return soxr.resample(pcm16_samples(data), API_RATE, SAMPLE_RATE)


def pcm16_samples(data: bytes) -> np.ndarray:
    """16-bit little-endian samples -> float32 [samples] at the same rate.

    Raises:
      UserError: the number of bytes is odd.
    """
    if len(data) % 2:
        raise UserError(f"{len(data)} bytes are no whole number of 16-bit samples.")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def encode_whole(format: str, wavs: Iterable[np.ndarray]) -> bytes:
    """A whole recording, whose header states its length."""
    encoder = Encoder(format, is_whole=True)
    return b"".join([*map(encoder.encode, wavs), encoder.finish()])


class Encoder:
    """Encodes sound as it comes: float32 [samples] at 16 kHz -> bytes of a recording at 24 kHz.

    All bytes together are one recording: a streamed wav has a single header, whose sizes are
    unknown.
    """

    def __init__(self, format: str, *, is_whole: bool = False):
        """
        Args:
          format: one of FORMATS.
          is_whole: everything is returned at the end, and headers state the length.
        """
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, API_RATE, 1, dtype="float32")
        self._writer: _Container | _Wav | _Pcm
        if format in _CODECS:
            self._writer = _Container(*_CODECS[format], is_whole)
        else:
            self._writer = _Wav(is_whole) if format == "wav" else _Pcm()

    def encode(self, wav: np.ndarray) -> bytes:
        """The bytes that are ready after these samples."""
        return self._writer.write(_pcm16(self._resampler.resample_chunk(wav)))

    def finish(self) -> bytes:
        """The last bytes."""
        rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        return self._writer.write(_pcm16(rest)) + self._writer.finish()


def _pcm16(wav: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(wav, -1, 1) * 32767).astype("<i2")


class _Pcm:
    """Bare samples."""

    def write(self, samples: np.ndarray) -> bytes:
        return samples.tobytes()

    def finish(self) -> bytes:
        return b""


class _Wav:
    """Samples after one header."""

    def __init__(self, is_whole: bool):
        self._is_whole, self._waiting = is_whole, b"" if is_whole else _wav_header(None)

    def write(self, samples: np.ndarray) -> bytes:
        self._waiting += samples.tobytes()
        return b"" if self._is_whole else self._take()

    def finish(self) -> bytes:
        if self._is_whole:
            self._waiting = _wav_header(len(self._waiting)) + self._waiting
        return self._take()

    def _take(self) -> bytes:
        taken, self._waiting = self._waiting, b""
        return taken


def _wav_header(size: int | None) -> bytes:
    """Header of a wav with `size` bytes of samples; None: unknown."""
    riff, data = (_UNKNOWN, _UNKNOWN) if size is None else (36 + size, size)
    fmt = struct.pack("<IHHIIHH", 16, 1, 1, API_RATE, 2 * API_RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", data)


class _Container:
    """A recording in a container of FFmpeg."""

    def __init__(self, container: str, codec: str, is_whole: bool):
        # FFmpeg corrects headers at the end of a file that it can seek in.
        self._whole = io.BytesIO() if is_whole else None
        self._pipe = _Pipe()
        # Each packet is a page of its own in Ogg: otherwise a page waits for a second of sound.
        options = {"page_duration": "1"} if container == "ogg" else {}
        self._container = av.open(self._whole or self._pipe, "w", format=container, options=options)
        self._stream = self._container.add_stream(codec, rate=API_RATE, layout="mono")
        context = self._stream.codec_context
        self._resampler = av.AudioResampler(context.format, "mono", API_RATE)
        self._written = 0

    def write(self, samples: np.ndarray) -> bytes:
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = API_RATE, self._written
            self._written += len(samples)
            for converted in self._resampler.resample(frame):
                self._container.mux(self._stream.encode(converted))
        return self._pipe.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._whole.getvalue() if self._whole else self._pipe.take()


class _Pipe:
    """A file that can only be written to, as FFmpeg sees it."""

    def __init__(self):
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._written = b"".join(self._written), []
        return taken
