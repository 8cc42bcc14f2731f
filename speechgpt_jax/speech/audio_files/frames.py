"""Streams of frames that no header precedes: MP3, AAC (ADTS), AC-3 and WavPack.

Two bytes mark a frame, too few to search a file for. But each frame states its size, so a file that
ends with such a stream is recognised from its end: frame before frame, each ending where the next
one begins.
"""

import mmap
import re
from collections.abc import Callable
from typing import NamedTuple

Data = bytes | mmap.mmap

# Frames of the shortest stream that is found, 0.2 to 0.4 s of sound: fewer may be there by chance.
_FEWEST = 10

# Bytes of a header that are read, and of the smallest frame.
_HEADER, _SMALLEST = 10, 7

# Bit rates in kbit/s by their index from 1, for MPEG-1's layers and for those of MPEG-2.
_MPEG_1 = {
    1: tuple(range(32, 449, 32)),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG_2 = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_HZ = (44_100, 48_000, 32_000)
_AC3_KBITS = (*_MPEG_1[3], 384, 448, 512, 576, 640)


class Frame(NamedTuple):
    """Size and format of a frame, as its header states them.

    Attributes:
      size: bytes, header included.
      stream: bits of the header that are the same in all frames of a stream.
    """

    size: int
    stream: bytes


def _mp3(head: bytes) -> Frame | None:
    """An MPEG audio frame of layer I, II or III."""
    version, layer, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    index, padding = head[2] >> 4, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or index in (0, 15):
        return None
    # Version 3 is MPEG-1, 2 is MPEG-2 and 0 is MPEG-2.5, with a half and a quarter of the rates.
    kbits = (_MPEG_1 if version == 3 else _MPEG_2)[layer][index - 1]
    hz = _MPEG_HZ[rate] // {3: 1, 2: 2, 0: 4}[version]
    if layer == 1:
        size = (12_000 * kbits // hz + padding) * 4
    else:
        size = (72_000 if layer == 3 and version != 3 else 144_000) * kbits // hz + padding
    return Frame(size, bytes([head[1] & 0xFE, head[2] & 0x0C]))


def _aac(head: bytes) -> Frame | None:
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if size < 7 or head[2] >> 2 & 15 > 12:  # The sampling rates have 13 numbers.
        return None
    return Frame(size, bytes([head[1] & 0xFE, head[2], head[3] & 0xC0]))


def _ac3(head: bytes) -> Frame | None:
    rate, index, version = head[4] >> 6, head[4] & 63, head[5] >> 3
    if 11 <= version <= 16:  # E-AC-3
        return Frame(((head[2] & 7) << 8 | head[3]) * 2 + 2, bytes([version]))
    if version > 10 or rate == 3 or index >= 2 * len(_AC3_KBITS):
        return None
    # A frame is 1536 samples at 48, 44.1 or 32 kHz, in words of 16 bits.
    words = _AC3_KBITS[index // 2] * 96_000 // (48_000, 44_100, 32_000)[rate]
    return Frame(2 * (words + (index & 1 if rate == 1 else 0)), bytes([version, rate]))


def _wavpack(head: bytes) -> Frame | None:
    return Frame(int.from_bytes(head[4:8], "little") + 8, b"")


class _Kind(NamedTuple):
    """A format.

    Attributes:
      mark: bytes with which a header begins.
      read: reader of a header, of which it gets _HEADER bytes; None if it is illegal.
      longest: size of the largest frame in bytes.
      fewest: number of frames of the shortest stream that is found.
    """

    mark: re.Pattern[bytes]
    read: Callable[[bytes], Frame | None]
    longest: int
    fewest: int

    def at(self, data: Data, start: int) -> Frame | None:
        """The frame whose mark is at `start`."""
        head = data[start : start + _HEADER]
        return self.read(head) if len(head) == _HEADER else None


_KINDS = {
    "AAC": _Kind(re.compile(rb"\xff(?=[\xf0\xf1\xf8\xf9])"), _aac, 8_191, _FEWEST),
    "MP3": _Kind(re.compile(rb"\xff(?=[\xe2-\xe7\xf2-\xf7\xfa-\xff])"), _mp3, 2_880, _FEWEST),
    "AC-3": _Kind(re.compile(rb"\x0b(?=\x77)"), _ac3, 4_096, _FEWEST),
    # Its header has the name and the version, so one block is enough.
    "WavPack": _Kind(
        re.compile(rb"(?s)wvpk(?=..[\x00-\x0f]\x00[\x02-\x10]\x04)"), _wavpack, 2**20, 1
    ),
}


def kind_at(data: Data, start: int) -> str | None:
    """The format of the frame that begins at `start`; None if none does."""
    for name, kind in _KINDS.items():
        if kind.mark.match(data, start) and kind.at(data, start):
            return name
    return None


def begins_stream(data: Data, start: int, end: int) -> bool:
    """Whether a stream of frames, perhaps with an ID3 tag, begins at `start`; it may be cut off."""
    head = data[start : start + 10]
    first = start + id3_size(head) if head[:3] == b"ID3" else start
    for kind in _KINDS.values():
        count, place = 0, first
        while place < end and kind.mark.match(data, place) and (frame := kind.at(data, place)):
            place += frame.size
            count += 1
            if count == kind.fewest:
                return True
    return False


def is_cut_off(data: Data) -> bool:
    """Whether a stream of frames that begins at 0 ends within a frame, tags at its end aside.

    False also if it isn't whole frames one after the other: damage is the decoder's to find.
    """
    kind = next((kind for kind in _KINDS.values() if kind.mark.match(data, 0)), None)
    frame = kind.at(data, 0) if kind else None
    if not kind or not frame:
        return False
    place, end, stream = frame.size, _before_tags(data, 0, len(data)), frame.stream
    while place < end:
        head = data[place : min(place + _HEADER, end)]
        if len(head) < _SMALLEST:  # Too few bytes for a header.
            return data[:2].startswith(head[:2])
        frame = kind.read(head.ljust(_HEADER, b"\0")) if kind.mark.match(head) else None
        if not frame:
            return False
        if place + frame.size > end:
            return frame.stream == stream
        # The next recording of a file of several may have another rate.
        place, stream = place + frame.size, frame.stream
    return False


def last_stream(data: Data, start: int, end: int, excluded: str | None) -> int | None:
    """First byte of the stream of frames with which the bytes from `start` to `end` end.

    An ID3 tag in front of the stream belongs to it. None if they end with something else, or with a
    stream of the format `excluded`.
    """
    stop = _before_tags(data, start, end)
    for name, kind in _KINDS.items():
        if name == excluded:
            continue
        first, count, frame = stop, 0, None
        while found := _frame_before(data, start, first, kind, frame):
            first, frame = found
            count += 1
        if count >= kind.fewest:
            return _before_id3(data, start, first)
    return None


def _frame_before(
    data: Data, start: int, end: int, kind: _Kind, next_frame: Frame | None
) -> tuple[int, Frame] | None:
    """Place and header of the frame that ends at `end`, of the same stream as the next one."""
    # Most frames of a stream are about as long as the next one.
    for reach in ((2 * next_frame.size,) if next_frame else ()) + (kind.longest,):
        for mark in kind.mark.finditer(data, max(start, end - reach), end):
            frame = kind.at(data, mark.start())
            if not frame or mark.start() + frame.size != end:
                continue
            if next_frame is None or next_frame.stream == frame.stream:
                return mark.start(), frame
    return None


def _before_tags(data: Data, start: int, end: int) -> int:
    """Where the tags at the end begin: ID3v1, then APEv2."""
    if data[max(start, end - 128) : end][:3] == b"TAG":
        end -= 128
    footer = data[max(start, end - 32) : end]
    if footer[:8] == b"APETAGEX":
        header = 32 * (footer[23] >> 7)
        end -= int.from_bytes(footer[12:16], "little") + header
    return max(end, start)


def _before_id3(data: Data, start: int, end: int) -> int:
    """Where an ID3v2 tag begins that ends at `end`; `end` if there is none."""
    tag = data.rfind(b"ID3", start, end)
    return tag if tag >= 0 and tag + id3_size(data[tag : tag + 10]) == end else end


def id3_size(header: bytes) -> int:
    """Size of an ID3v2 tag in bytes, header included."""
    size = 0
    for byte in header[6:10]:  # Seven bits of each.
        size = size << 7 | byte
    return size + 10
