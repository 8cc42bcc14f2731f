"""Reading and writing of sound: float32 mono at 16 kHz, in [-1, 1].

libsndfile reads the formats that it knows, FFmpeg (PyAV) the others. Both stop without an error
where a file is cut off or where a second recording follows the first. `load_audio` checks for both,
so that a file is read whole or refused.
"""

import contextlib
import functools
import io
import itertools
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from speechgpt_jax import files
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio_files.checks import Unreadable, check_length, xing_header
from speechgpt_jax.speech.audio_files.decoders import Blocks, Recording, decoded

SAMPLE_RATE = 16_000

# Suffixes of recordings and of videos, for searches of folders; `load_audio` goes by the content.
# A `.ts` may also be a program, which is then refused like any file that is no sound.
SUFFIXES = (
    *(".wav", ".wave", ".wavex", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".spx", ".w64", ".rf64"),
    *(".aif", ".aiff", ".aifc", ".afc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc", ".ircam"),
    *(".sf", ".paf", ".pvf", ".avr", ".svx", ".sds", ".htk", ".mat4", ".mat5", ".mpc2k", ".sox"),
    *(".mp1", ".mp2", ".mpga", ".mpa", ".m2a", ".m4a", ".m4b", ".aac", ".adts", ".latm", ".loas"),
    *(".weba", ".mka", ".wma", ".amr", ".ac3", ".eac3", ".ec3", ".dts", ".ape", ".wv", ".tta"),
    *(".mpc", ".mmf", ".ra", ".rm", ".isma", ".ismv", ".mp4", ".m4v", ".f4v", ".mov", ".3gp"),
    *(".3g2", ".webm", ".mkv", ".avi", ".asf", ".wmv", ".flv", ".ogv", ".nut", ".mpg", ".mpeg"),
    *(".vob", ".dvd", ".ts", ".m2t", ".m2ts", ".mts", ".mxf", ".swf", ".wtv"),
)

# Full scale of 32-bit integers, which some programs store as floats. HuBERT's products overflow
# beyond 1e15 and would spoil the other recordings of the batch.
LARGEST_SAMPLE = 2.0**31
# Lowest sampling rate in Hz that is believed: a damaged header may state 1, and every sample would
# become thousands.
LOWEST_RATE = 1_000
# libsndfile's Ogg encoder crashes on blocks of several minutes.
WRITE_BLOCK = 2**16


def load_audio(
    source: str | os.PathLike | BinaryIO,
    max_seconds: float | None = None,
    checkpoint: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Reads a recording of any format, sample rate and channel count.

    Formats are those of libsndfile and FFmpeg, recognised by content: wav, flac, mp3, ogg, opus,
    aiff, au, m4a, aac, webm, wma, amr, ..., and the sound of videos. Channels are averaged, then
    the sound is resampled (soxr, high quality). Recordings joined byte by byte
    (`cat a.mp3 b.mp3`) are read to the end of the last one, also if their formats differ. A later
    recording is overlooked if it is of APE or DTS, or an MP3, AAC or AC-3 of less than 0.4 s; and,
    behind a format that states no size (flac, ogg, webm, amr, ...), if its last frame is cut off.
    A file may hold 64 recordings of 32 channels.

    Args:
      source: a path, or an open binary file.
      max_seconds: length of the longest recording that is accepted; None: any length.
      checkpoint: called again and again while the file is decoded; it may raise to end that.

    Returns:
      float32 [samples], mono, 16 kHz. At least one sample.

    Raises:
      UserError: the file is missing, empty, not audio, damaged or cut off, longer than
        `max_seconds`, of too many recordings or channels, or holds samples that `check_samples`
        refuses, or channels whose mean is silence.
    """
    is_path = isinstance(source, str | os.PathLike)
    name = source if is_path else getattr(source, "name", "the recording")
    with _opened(source, checkpoint) as recording:
        try:
            stated_seconds = xing_header(recording.data)[0] if recording.is_mp3 else 0.0
            wav = _resampled(_limited(decoded(recording), max_seconds, stated_seconds))
        except Unreadable as error:
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


@contextlib.contextmanager
def _opened(
    source: str | os.PathLike | BinaryIO, checkpoint: Callable[[], None]
) -> Iterator[Recording]:
    if not isinstance(source, str | os.PathLike):
        yield Recording(source.read(), None, checkpoint)
        return
    path = os.fspath(source)
    if files.is_remote(path):
        yield Recording(files.read_bytes(path, "a recording"), None, checkpoint)
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
        yield Recording(mapped, path, checkpoint)


def _resampled(blocks: Blocks) -> np.ndarray:
    """All blocks at 16 kHz, one after the other: float32 [samples]."""
    wavs = []
    for rate, same_rate in itertools.groupby(blocks, key=lambda block: block[1]):
        if rate == SAMPLE_RATE:
            wavs += [wav for wav, _ in same_rate]
            continue
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        wavs += [stream.resample_chunk(wav) for wav, _ in same_rate]
        wavs.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return wavs[0] if len(wavs) == 1 else np.concatenate([np.zeros(0, np.float32), *wavs])


def _limited(blocks: Blocks, max_seconds: float | None, stated_seconds: float) -> Blocks:
    """The same blocks; raises if they are longer than `max_seconds` or shorter than stated.

    Also raises if their sampling rate is below LOWEST_RATE.
    """
    seconds = 0.0
    for wav, rate in blocks:
        if rate < LOWEST_RATE:
            raise Unreadable(f"has {rate} Hz; expected a sampling rate of at least {LOWEST_RATE}.")
        seconds += len(wav) / rate
        if max_seconds is not None and seconds > max_seconds:
            raise Unreadable(f"is longer than {max_seconds:g} s; cut it into shorter recordings.")
        yield wav, rate
    check_length(seconds, stated_seconds)


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
