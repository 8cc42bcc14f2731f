"""Decoders of sound: libsndfile for the formats that it knows, FFmpeg (PyAV) for the others."""

import contextlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator

import av
import numpy as np
import soundfile

from speechgpt_jax.speech.audio_files.checks import (
    TOLERANCE_SECONDS,
    Unreadable,
    check_container_size,
    check_length,
    check_ogg_pages,
    check_stated_size,
    xing_header,
)
from speechgpt_jax.speech.audio_files.frames import Data, id3_size, is_cut_off
from speechgpt_jax.speech.audio_files.joined import starts

# Samples, of all channels together, that are decoded at a time: memory grows with a file's content,
# not with the length in its header.
BLOCK = 2**20
# Most channels that are read; formats allow hundreds, of which silence takes next to no bytes.
MOST_CHANNELS = 32

Blocks = Iterator[tuple[np.ndarray, int]]  # float32 [samples], mono, and their rate in Hz


class Recording:
    """Bytes of a recording, which several decoders may open; ID3 tags of an MP3 are removed.

    Attributes:
      checkpoint: called before each recording of a file, and again and again while it is decoded;
        what it raises ends the decoding.
    """

    def __init__(self, data: Data, path: str | None, checkpoint: Callable[[], None] = lambda: None):
        self.checkpoint = checkpoint
        # AAC begins like an MP3 too, but has no such tags.
        self.is_mp3 = data[:3] == b"ID3" or data[:1] == b"\xff"
        self.data = _without_tags(data) if self.is_mp3 else data
        self._path = None if self.is_mp3 else path

    def open(self) -> int | io.BytesIO:
        return open_unnamed(self._path) if self._path else io.BytesIO(self.data)


def open_unnamed(path: str | os.PathLike) -> int:
    """Descriptor of a file for soundfile, which closes it.

    With the file's name, libsndfile would take anything called .au, .snd, .gsm or .vox for sound
    without a header, and soundfile would ask for the sampling rate of a .raw.
    """
    return os.open(path, os.O_RDONLY)


class Mixer:
    """Averages the channels of a recording, and notices if they cancel each other out."""

    # Lowest power of the mean, relative to the power that it has if the channels are independent.
    FAINTEST = 0.02

    def __init__(self):
        self._mixed, self._expected = 0.0, 0.0

    def mix(self, channels: np.ndarray) -> np.ndarray:
        """[channels, samples] -> their mean, float32 [samples]."""
        if len(channels) == 1:
            return channels[0].astype(np.float32)
        mono = channels.mean(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # `check_samples` reports such samples.
            self._mixed += float(np.square(mono, dtype=np.float64).sum())
            self._expected += (
                float(np.square(channels, dtype=np.float64).sum()) / len(channels) ** 2
            )
        return mono.astype(np.float32)

    def check(self) -> None:
        """Raises Unreadable if the mean of all blocks has far less power than the channels."""
        if self._mixed < self.FAINTEST * self._expected:
            raise Unreadable(
                "has channels that cancel each other out, such as two in opposite phase: their mean"
                " is silence. Give one of them alone."
            )


def decoded(recording: Recording) -> Blocks:
    """Blocks of all recordings of a file."""
    data = recording.data
    if not len(data):
        raise Unreadable("is empty (0 bytes); expected a recording.")
    begins = starts(data)
    if len(begins) == 1:
        yield from _decoded_one(recording)
        return
    for start, end in itertools.pairwise([*begins, len(data)]):
        recording.checkpoint()
        yield from _decoded_one(Recording(data[start:end], None, recording.checkpoint))


def _check_channels(number: int) -> None:
    if number > MOST_CHANNELS:
        raise Unreadable(f"has {number} channels; expected at most {MOST_CHANNELS}. Mix them down.")


# libsndfile's error SF_ERR_MALFORMED_FILE: a format that it knows.
_MALFORMED = 3


def _decoded_one(recording: Recording) -> Blocks:
    check_ogg_pages(recording.data)
    if is_cut_off(recording.data):
        raise Unreadable("is cut off: its last frame is not complete. Copy it again.")
    # libsndfile takes the heads of a VOC's further blocks for sound.
    if recording.data[:19] == b"Creative Voice File":
        return _ffmpeg_blocks(recording)
    try:
        sound = soundfile.SoundFile(recording.open())
    except soundfile.LibsndfileError as error:
        if error.code == _MALFORMED:
            raise Unreadable(f"is damaged: {error.error_string}") from error
        return _ffmpeg_blocks(recording)
    # A writer to a pipe leaves the number of frames at 0 or beyond every file's.
    if not 0 < sound.frames < 2**48 or (sound.format == "MP3" and _is_joined_mp3(sound, recording)):
        sound.close()
        return _ffmpeg_blocks(recording)
    return _libsndfile_blocks(sound, recording)


def _is_joined_mp3(sound: soundfile.SoundFile, recording: Recording) -> bool:
    """True if there are more frames than the header of the first recording counts."""
    _, stated_size = xing_header(recording.data)
    if len(recording.data) < stated_size + 1024:
        return False
    with _ffmpeg_errors(), _opened_by_ffmpeg(recording) as container:
        stream = container.streams.audio[0]
        ticks = sum(packet.duration or 0 for packet in container.demux(stream))
        seconds = float(ticks * stream.time_base)
    return seconds > sound.frames / sound.samplerate + TOLERANCE_SECONDS


# ---- libsndfile ----------------------------------------------------------------------------------


def _libsndfile_blocks(sound: soundfile.SoundFile, recording: Recording) -> Blocks:
    frames, mixer = 0, Mixer()
    with sound:
        _check_channels(sound.channels)
        samples = check_stated_size(sound, recording.data)
        most = max(1, BLOCK // sound.channels)
        while True:
            recording.checkpoint()
            try:
                # [samples, channels]
                wav = sound.read(min(most, samples - frames), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise Unreadable(f"is damaged or cut off: {error.error_string}") from error
            frames += len(wav)
            if not len(wav):
                break
            yield mixer.mix(wav.T), sound.samplerate
        check_length(frames / sound.samplerate, samples / sound.samplerate)
    mixer.check()


# ---- FFmpeg --------------------------------------------------------------------------------------

# Containers whose duration is stated, not estimated from the size of the file.
_STATE_DURATION = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "tta", "caf", "aiff", "flv"}
# Those among them with one duration for all streams: with video it may be the video's.
_ONE_DURATION = {"matroska,webm", "asf", "flv"}
# Containers whose packets need not be whole frames.
_PARSED = {"mpegts", "mpeg", "swf"}


@contextlib.contextmanager
def _ffmpeg_errors() -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "no sound in it"
        raise Unreadable(
            f"is not readable as sound ({reason}); expected a recording, such as wav, flac, mp3, "
            "ogg, opus, m4a or webm."
        ) from error


def _opened_by_ffmpeg(recording: Recording, **options: str) -> av.container.InputContainer:
    return av.open(
        io.BytesIO(recording.data),
        # Without protocols a playlist can't open other files.
        options={"protocol_whitelist": "none"} | options,
        # Titles and other tags need not be UTF-8.
        metadata_errors="replace",
    )


def _check_last_packet(recording: Recording, index: int) -> None:
    """Refuses a container whose last packet of sound, of the stream `index`, is not complete."""
    # FFmpeg's parsers join packets into frames, and drop a frame that is not complete.
    with _opened_by_ffmpeg(recording, fflags="noparse") as container:
        is_corrupt = False
        for packet in container.demux(container.streams[index]):
            recording.checkpoint()
            is_corrupt = packet.is_corrupt if packet.size else is_corrupt
    if is_corrupt:
        raise Unreadable("is cut off: its last packet is not complete. Copy it again.")


def _ffmpeg_blocks(recording: Recording) -> Blocks:
    check_container_size(recording.data)
    with _ffmpeg_errors():
        container = _opened_by_ffmpeg(recording)
    with container:
        with _ffmpeg_errors():
            stream = container.streams.audio[0]
            if container.format.name in _PARSED:
                _check_last_packet(recording, stream.index)
        if stream.codec_context is None:
            raise Unreadable("holds sound of a codec that FFmpeg doesn't know; convert it to wav.")
        if stream.codec_context.name in ("wavpack", "tta"):  # Damage would be decoded as noise.
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        seconds, mixer, packets = 0.0, Mixer(), _Packets(container, recording.checkpoint)
        for rate, frames in itertools.groupby(
            _ffmpeg_frames(packets, stream), key=lambda frame: frame.sample_rate
        ):
            for wav in _gathered(mixer.mix(_channels(frame)) for frame in frames):
                seconds += len(wav) / rate
                yield wav, rate
        if len(container.streams) > 1 and container.format.name in _ONE_DURATION:
            seconds = max(seconds, packets.seconds)
        check_length(seconds, _stated_seconds(container, stream))
    mixer.check()


def _gathered(wavs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples in pieces of about BLOCK."""
    waiting, samples = [], 0
    for wav in wavs:
        waiting.append(wav)
        samples += len(wav)
        if samples >= BLOCK:
            yield np.concatenate(waiting)
            waiting, samples = [], 0
    if waiting:
        yield np.concatenate(waiting)


class _Packets:
    """Packets of all streams of a container.

    Attributes:
      seconds: time at which the last one of those that were read ends.
    """

    def __init__(self, container: av.container.InputContainer, checkpoint: Callable[[], None]):
        self._container, self._checkpoint, self.seconds = container, checkpoint, 0.0

    def of(self, stream: av.AudioStream) -> Iterator[av.Packet]:
        """The packets of one stream."""
        for packet in self._container.demux():
            self._checkpoint()
            if packet.pts is not None and packet.time_base:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self.seconds = max(self.seconds, float(end))
            if packet.stream_index == stream.index:
                yield packet


def _ffmpeg_frames(packets: _Packets, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    seconds = 0.0
    try:
        for packet in packets.of(stream):
            # The last packet of uncompressed samples may be shorter.
            if packet.is_corrupt and not stream.codec_context.name.startswith("pcm_"):
                raise av.error.InvalidDataError(0, "a packet is not complete")
            for frame in packet.decode():
                _check_channels(frame.layout.nb_channels)
                seconds += frame.samples / frame.sample_rate
                yield frame
    except av.error.FFmpegError as error:
        raise Unreadable(
            f"is damaged or cut off after {seconds:.2f} s: {error.strerror}."
        ) from error


def _stated_seconds(container, stream) -> float:
    """Length of the sound if the container states it, else 0.0."""
    if container.format.name not in _STATE_DURATION:
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if len(container.streams) > 1 and container.format.name not in _ONE_DURATION:
        return 0.0
    return (container.duration or 0) / av.time_base


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """A frame of any sample format: float32 or float64 [channels, samples]."""
    values = frame.to_ndarray()  # [channels, samples], or interleaved [1, samples * channels]
    channels = values if frame.format.is_planar else values.reshape(frame.samples, -1).T
    if values.dtype.kind == "u":
        channels = (channels.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        channels = channels.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return channels


def _without_tags(data: Data) -> bytes:
    """MP3 data without ID3 tags, which FFmpeg decodes as sound between joined recordings."""
    pieces, start = [], 0
    for tag in re.finditer(rb"(?s)ID3[\2-\4]\0.[\0-\x7f]{4}", data):
        if tag.start() >= start:
            pieces.append(data[start : tag.start()])
            start = tag.start() + id3_size(tag[0])
    return b"".join([*pieces, data[start:]])
