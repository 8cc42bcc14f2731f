"""Reading and writing of sound: float32 mono at 16 kHz, in [-1, 1].

libsndfile reads the formats that it knows, FFmpeg (PyAV) the others. Both stop without an error
where a file is cut off or where a second recording follows the first. `load_audio` checks for both,
so that a file is read whole or refused, except for what `load_audio` says of later recordings in
MP3, AAC, AC-3 and WavPack.
"""

import contextlib
import functools
import io
import itertools
import mmap
import os
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

from speechgpt_jax import files
from speechgpt_jax.errors import UserError

SAMPLE_RATE = 16_000

# Suffixes of recordings, for searches of folders; `load_audio` goes by the content.
SUFFIXES = (
    *(".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".voc", ".ircam", ".paf", ".pvf"),
    *(".avr", ".svx", ".mp1", ".mp2", ".mpga", ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".3g2"),
    *(".aac", ".webm", ".weba", ".mka", ".mkv", ".wma", ".asf", ".amr", ".ac3", ".eac3", ".dts"),
    *(".ape", ".wv", ".tta", ".spx"),
)

# Samples decoded at a time: memory grows with a file's content, not with the length in its header.
BLOCK = 2**20
# Accepted difference between decoded and stated length: headers may count the padding of encoders,
# two or three frames of about 26 ms.
TOLERANCE_SECONDS = 0.2
# Full scale of 32-bit integers, which some programs store as floats. HuBERT's products overflow
# beyond 1e15 and would spoil the other recordings of the batch.
LARGEST_SAMPLE = 2.0**31
# libsndfile's Ogg encoder crashes on blocks of several minutes.
WRITE_BLOCK = 2**16

Blocks = Iterator[tuple[np.ndarray, int]]  # float32 [samples], mono, and their rate in Hz


def load_audio(
    source: str | os.PathLike | BinaryIO, max_seconds: float | None = None
) -> np.ndarray:
    """Reads a recording of any format, sample rate and channel count.

    Formats are those of libsndfile and FFmpeg, recognised by content: wav, flac, mp3, ogg, opus,
    aiff, au, m4a, aac, webm, wma, amr, ..., and the sound of videos. Channels are averaged, then
    the sound is resampled (soxr, high quality). Recordings joined byte by byte
    (`cat a.mp3 b.mp3`) are read to the end of the last one, also if their formats differ. A later
    recording in MP3, AAC, AC-3 or WavPack behind another format is overlooked: these formats have
    no signature long enough to search for.

    Args:
      source: a path, or an open binary file.
      max_seconds: length of the longest recording that is accepted; None: any length.

    Returns:
      float32 [samples], mono, 16 kHz. At least one sample.

    Raises:
      UserError: the file is missing, empty, not audio, damaged or cut off, longer than
        `max_seconds`, or holds samples that `check_samples` refuses.
    """
    is_path = isinstance(source, str | os.PathLike)
    name = source if is_path else getattr(source, "name", "the recording")
    with _opened(source) as recording:
        try:
            stated_seconds = _xing_header(recording.data)[0] if recording.is_mp3 else 0.0
            wav = _resampled(_limited(_decoded(recording), max_seconds, stated_seconds))
        except _Unreadable as error:
            raise UserError(f"{name} {error}") from error
    if len(wav) == 0:
        raise UserError(f"{name} holds no samples; expected a recording.")
    check_samples(wav, str(name))
    return wav


def check_samples(wav: np.ndarray, name: str) -> None:
    """Raises a UserError if samples are NaN, infinite or far beyond full scale."""
    largest = float(np.abs(wav).max(initial=0.0))  # NaN if there is one.
    if not largest <= LARGEST_SAMPLE:
        raise UserError(
            f"{name} holds NaN, infinite or far too large samples (up to {largest:g}); expected "
            "values in [-1, 1]."
        )


class _Unreadable(Exception):
    """Reason why a recording can't be read, without the name of the file before it."""


class _Recording:
    """Bytes of a recording, which several decoders may open; ID3 tags of an MP3 are removed."""

    def __init__(self, data: bytes | mmap.mmap, path: str | None):
        # AAC begins like an MP3 too, but has no such tags.
        self.is_mp3 = data[:3] == b"ID3" or data[:1] == b"\xff"
        self.data = _without_tags(data) if self.is_mp3 else data
        self._path = None if self.is_mp3 else path

    def open(self) -> str | io.BytesIO:
        return self._path or io.BytesIO(self.data)


@contextlib.contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[_Recording]:
    if not isinstance(source, str | os.PathLike):
        yield _Recording(source.read(), None)
        return
    path = os.fspath(source)
    if files.is_remote(path):
        yield _Recording(files.read_bytes(path, "a recording"), None)
        return
    if not os.path.isfile(path):
        raise UserError(f"No audio file at {path}; expected a recording.")
    try:
        with open(path, "rb") as file:
            # An empty file can't be mapped.
            empty = os.fstat(file.fileno()).st_size == 0
            data = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error}.") from error
    with contextlib.nullcontext(b"") if data is None else data as mapped:
        yield _Recording(mapped, path)


def _resampled(blocks: Blocks) -> np.ndarray:
    """All blocks at 16 kHz, one after the other: float32 [samples]."""
    wavs = []
    for rate, of_rate in itertools.groupby(blocks, key=lambda block: block[1]):
        if rate == SAMPLE_RATE:
            wavs += [wav for wav, _ in of_rate]
            continue
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        wavs += [stream.resample_chunk(wav) for wav, _ in of_rate]
        wavs.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return wavs[0] if len(wavs) == 1 else np.concatenate([np.zeros(0, np.float32), *wavs])


def _limited(blocks: Blocks, max_seconds: float | None, stated_seconds: float) -> Blocks:
    """The same blocks; raises if they are longer than `max_seconds` or shorter than stated."""
    seconds = 0.0
    for wav, rate in blocks:
        seconds += len(wav) / rate
        if max_seconds is not None and seconds > max_seconds:
            raise _Unreadable(f"is longer than {max_seconds:g} s; cut it into shorter recordings.")
        yield wav, rate
    _check_length(seconds, stated_seconds)


# ---- which decoder, and whether the file is whole -----------------------------------------------


def _decoded(recording: _Recording) -> Blocks:
    """Blocks of all recordings of a file."""
    data = recording.data
    if not len(data):
        raise _Unreadable("is empty (0 bytes); expected a recording.")
    starts = _starts(data)
    if len(starts) == 1:
        yield from _decoded_one(recording)
        return
    for start, end in itertools.pairwise([*starts, len(data)]):
        yield from _decoded_one(_Recording(data[start:end], None))


# Signatures with which recordings begin, of the formats whose signature is long enough to search
# for. Ogg and Matroska have FLAC's inside.
_HEAD = re.compile(
    rb"""(?sx)
    RIFF....(?:WAVE|AVI[ ]) | RF64....WAVE | FORM....(?:AIFF|AIFC|8SVX|16SV) | riff\x2e\x91\xcf\x11
    | (?<!\x7fFLAC....)(?<!\x63\xa2.)(?<!\x63\xa2..)(?<!\x63\xa2...)fLaC[\x00\x80]\x00\x00\x22
    | OggS\x00\x02\x00{8} | \.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b] | caff\x00\x01\x00\x00desc
    | NIST_1A\n | \x30\x26\xb2\x75\x8e\x66\xcf\x11 | TTA1\x01\x00 | \#!AMR(?:-WB)?\n
    | Creative[ ]Voice[ ]File | FLV\x01[\x01\x04\x05]\x00\x00\x00\x09
    | \x1a\x45\xdf\xa3.{1,8}\x42[\x82\x86\x87\xf2\xf3\xf7] | \x00\x00\x00.ftyp"""
)


def _starts(data: bytes | mmap.mmap) -> list[int]:
    """Offsets at which recordings begin, [0] unless several are joined byte by byte."""
    # Others, such as WavPack, may keep the head of the file that they were made from.
    if not _HEAD.match(data) and data[:1] != b"\xff":
        return [0]
    starts = [0, *(found.start() for found in _HEAD.finditer(data, 1))]
    # An Ogg recording may have several streams, whose first pages follow each other.
    inner = {
        b
        for a, b in itertools.pairwise(starts)
        if data[a : a + 4] == b"OggS" and data.find(b"OggS", a + 4) == b
    }
    return [start for start in starts if start not in inner]


_MALFORMED = 3  # libsndfile's error SF_ERR_MALFORMED_FILE: a format that it knows.


def _decoded_one(recording: _Recording) -> Blocks:
    _check_last_ogg_page(recording.data)
    try:
        sound = soundfile.SoundFile(recording.open())
    except soundfile.LibsndfileError as error:
        if error.code == _MALFORMED:
            raise _Unreadable(f"is damaged: {error.error_string}") from error
        return _ffmpeg_blocks(recording)
    # A writer to a pipe leaves the number of frames at 0 or beyond every file's.
    if not 0 < sound.frames < 2**48 or (sound.format == "MP3" and _is_joined_mp3(sound, recording)):
        sound.close()
        return _ffmpeg_blocks(recording)
    return _libsndfile_blocks(sound, recording.data)


def _is_joined_mp3(sound: soundfile.SoundFile, recording: _Recording) -> bool:
    """True if there are more frames than the header of the first recording counts."""
    _, stated_size = _xing_header(recording.data)
    if len(recording.data) < stated_size + 1024:
        return False
    with _ffmpeg_errors(), _opened_by_ffmpeg(recording) as container:
        stream = container.streams.audio[0]
        ticks = sum(packet.duration or 0 for packet in container.demux(stream))
        seconds = float(ticks * stream.time_base)
    return seconds > sound.frames / sound.samplerate + TOLERANCE_SECONDS


def _xing_header(data: bytes | mmap.mmap) -> tuple[float, int]:
    """Length in seconds and in bytes by the Xing header of an MP3 without tags; zeros if none."""
    # Only with both low bits of the flags set do the numbers of frames and of bytes follow.
    pattern = rb"(?s)\xff(.)(.).(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0[\3\7\x0b\x0f](.{4})(.{4})"
    found = re.match(pattern, data)
    if not found:
        return 0.0, 0
    version, rate = found[1][0] >> 3 & 3, found[2][0] >> 2 & 3
    # MPEG-1 has 1152 samples per frame at 44.1, 48 or 32 kHz; MPEG-2 has half of both, MPEG-2.5
    # half of the samples and a quarter of the rate.
    samples, divisor = {3: (1152, 1), 2: (576, 2)}.get(version, (576, 4))
    hz = (44_100, 48_000, 32_000, 32_000)[rate] / divisor
    return int.from_bytes(found[3]) * samples / hz, int.from_bytes(found[4])


def _check_stated_size(sound: soundfile.SoundFile, data: bytes | mmap.mmap) -> None:
    """Refuses a file that ends before the size that its header states."""
    # libsndfile corrects sizes without an error; its log has both.
    log = sound.extra_info
    found = re.findall(
        r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.M
    )
    sizes = [(int(stated), int(present), "bytes") for stated, present in found]
    if data[:7] == b"NIST_1A":
        counts = re.findall(rb"sample_count -i (\d+)", data[:1024])
        sizes += [(int(count), sound.frames, "samples") for count in counts]
    for stated, present, unit in sizes:
        _check_size(stated, present, unit)


def _check_size(stated: int, present: int, unit: str) -> None:
    # A writer to a pipe states the largest size. The pad byte after odd data may be missing.
    is_size = stated >> 16 not in (0x7FFF, 0x8000, 0xFFFF)
    if is_size and present + 1 < stated:
        raise _Unreadable(
            f"is cut off: its header states {stated} {unit} of sound, {present} are there. "
            "Copy it again."
        )


def _check_last_ogg_page(data: bytes | mmap.mmap) -> None:
    if data[:4] != b"OggS":
        return
    page = data.rfind(b"OggS")
    segments = data[page + 27 : page + 27 + data[page + 26]] if page + 26 < len(data) else b""
    if not segments or page + 27 + len(segments) + sum(segments) > len(data):
        raise _Unreadable("is cut off: its last Ogg page is not complete. Copy it again.")
    after = bytes(data[page + 27 + len(segments) + sum(segments) :]).strip(b"\0")
    if after:
        raise _Unreadable(f"has {len(after)} bytes after its last Ogg page; remove them.")


def _check_length(decoded_seconds: float, stated_seconds: float) -> None:
    if decoded_seconds + TOLERANCE_SECONDS < stated_seconds:
        raise _Unreadable(
            f"is damaged or cut off: its header states {stated_seconds:.2f} s, only "
            f"{decoded_seconds:.2f} s can be decoded. Copy it again."
        )


# ---- libsndfile ----------------------------------------------------------------------------------


def _libsndfile_blocks(sound: soundfile.SoundFile, data: bytes | mmap.mmap) -> Blocks:
    frames = 0
    with sound:
        _check_stated_size(sound, data)
        while True:
            try:
                wav = sound.read(BLOCK, dtype="float32", always_2d=True)  # [samples, channels]
            except soundfile.LibsndfileError as error:
                raise _Unreadable(f"is damaged or cut off: {error.error_string}") from error
            frames += len(wav)
            if not len(wav):
                break
            yield wav.mean(axis=1), sound.samplerate
        _check_length(frames / sound.samplerate, sound.frames / sound.samplerate)


# ---- FFmpeg --------------------------------------------------------------------------------------

# Containers whose duration is stated, not estimated from the size of the file.
_STATE_DURATION = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "tta", "caf", "aiff", "flv"}


@contextlib.contextmanager
def _ffmpeg_errors() -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "no sound in it"
        raise _Unreadable(
            f"is not readable as sound ({reason}); expected a recording, such as wav, flac, mp3, "
            "ogg, opus, m4a or webm."
        ) from error


def _opened_by_ffmpeg(recording: _Recording) -> av.container.InputContainer:
    # Without protocols a playlist can't open other files.
    return av.open(io.BytesIO(recording.data), options={"protocol_whitelist": "none"})


def _ffmpeg_blocks(recording: _Recording) -> Blocks:
    if recording.data[:4] == b"RIFF":  # AVI, whose stated duration may be an estimate.
        stated = int.from_bytes(recording.data[4:8], "little")
        _check_size(stated, len(recording.data) - 8, "bytes")
    with _ffmpeg_errors():
        container = _opened_by_ffmpeg(recording)
    with container:
        with _ffmpeg_errors():
            stream = container.streams.audio[0]
        if stream.codec_context.name in ("wavpack", "tta"):  # Damage would be decoded as noise.
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        seconds = 0.0
        for rate, frames in itertools.groupby(
            _ffmpeg_frames(container, stream), key=lambda frame: frame.sample_rate
        ):
            for wav in _gathered(map(_mono, frames)):
                seconds += len(wav) / rate
                yield wav, rate
        _check_length(seconds, _stated_seconds(container, stream))


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


def _ffmpeg_frames(container, stream) -> Iterator[av.AudioFrame]:
    seconds = 0.0
    try:
        for packet in container.demux(stream):
            # The last packet of uncompressed samples may be shorter.
            if packet.is_corrupt and not stream.codec_context.name.startswith("pcm_"):
                raise av.error.InvalidDataError(0, "a packet is not complete")
            for frame in packet.decode():
                seconds += frame.samples / frame.sample_rate
                yield frame
    except av.error.FFmpegError as error:
        raise _Unreadable(
            f"is damaged or cut off after {seconds:.2f} s: {error.strerror}."
        ) from error


def _stated_seconds(container, stream) -> float:
    """Length of the sound if the container states it, else 0.0."""
    if container.format.name not in _STATE_DURATION:
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # The duration of a container with other streams may be that of its pictures.
    if len(container.streams) > 1 or not container.duration:
        return 0.0
    return container.duration / av.time_base


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """Mean over the channels of a frame of any sample format: float32 [samples]."""
    values = frame.to_ndarray()  # [channels, samples], or interleaved [1, samples * channels]
    channels = values if frame.format.is_planar else values.reshape(frame.samples, -1).T
    if values.dtype.kind == "u":
        channels = (channels.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        channels = channels.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return channels.mean(axis=0).astype(np.float32)


def _without_tags(data: bytes | mmap.mmap) -> bytes:
    """MP3 data without ID3 tags, which FFmpeg decodes as sound between joined recordings."""
    pieces, start = [], 0
    for tag in re.finditer(rb"(?s)ID3[\2-\4]\0.([\0-\x7f]{4})", data):
        if tag.start() >= start:
            size = functools.reduce(lambda total, byte: total << 7 | byte, tag[1], 0)
            pieces.append(data[start : tag.start()])
            start = tag.end() + size
    return b"".join([*pieces, data[start:]])


# ---- writing -------------------------------------------------------------------------------------


@functools.cache
def _output_formats() -> dict[str, tuple[str, str]]:
    """Suffix -> libsndfile's format and subtype: 16-bit PCM, or else the format's own coding."""
    # RAW has no header, SD2 needs two files, WVE and XI have sample rates of their own.
    names = soundfile.available_formats().keys() - {"RAW", "SD2", "WVE", "XI"}
    formats = {f".{name.lower()}": name for name in names}
    formats |= {".aif": "AIFF", ".oga": "OGG", ".snd": "AU", ".sph": "NIST", ".wave": "WAV"}
    subtypes = {
        name: "PCM_16"
        if soundfile.check_format(name, "PCM_16")
        else soundfile.default_subtype(name)
        for name in names
    }
    with_subtypes = {suffix: (name, subtypes[name]) for suffix, name in formats.items()}
    return dict(sorted((with_subtypes | {".opus": ("OGG", "OPUS")}).items()))


def check_output(path: str | os.PathLike) -> tuple[str, str]:
    """Checks that `save_audio` can write to `path`; returns libsndfile's format and subtype.

    Raises:
      UserError: the suffix names no format, `path` is a folder, or its folder can't be written to.
    """
    formats = _output_formats()
    suffix = pathlib.PurePath(path).suffix.lower()
    if suffix not in formats:
        given = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise UserError(
            f"{path} has {given}, and the suffix names the format of the sound; expected one of "
            f"{', '.join(formats)}."
        )
    files.check_writable_file(path)
    return formats[suffix]


def save_audio(path: str | os.PathLike, wav: np.ndarray) -> None:
    """Writes float32 [samples] at 16 kHz; the suffix names the format (`check_output`).

    Samples are 16-bit PCM unless the format has a coding of its own (mp3, ogg, opus). The file
    appears whole or not at all; missing folders are made.

    Raises:
      UserError: see `check_output`.
    """
    name, subtype = check_output(path)
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", SAMPLE_RATE, 1, subtype, format=name) as sound:
        for start in range(0, len(wav), WRITE_BLOCK):
            sound.write(np.clip(wav[start : start + WRITE_BLOCK], -1.0, 1.0))
    files.write_bytes(path, data.getvalue())
