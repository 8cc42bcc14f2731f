"""Finds where each recording begins in a file of several, joined byte by byte (`cat a b`)."""

import itertools
import re

from speechgpt_jax.speech.audio_files.checks import Unreadable, is_size
from speechgpt_jax.speech.audio_files.frames import Data, begins_stream, kind_at, last_stream

# Signatures with which recordings begin, of the formats whose signature is long enough to search
# for. Ogg and Matroska have FLAC's inside.
_HEAD = re.compile(
    rb"""(?sx)
    RIFF....(?:WAVE|AVI[ ]) | RF64....WAVE | FORM....(?:AIFF|AIFC|8SVX|16SV) | riff\x2e\x91\xcf\x11
    | (?<!\x7fFLAC....)(?<!\x63\xa2.)(?<!\x63\xa2..)(?<!\x63\xa2...)fLaC[\x00\x80]\x00\x00\x22
    | OggS\x00\x02\x00{8} | \.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b] | caff\x00\x01\x00\x00desc
    | NIST_1A\n | \x30\x26\xb2\x75\x8e\x66\xcf\x11 | TTA1\x01\x00 | \#!AMR(?:-WB)?\n
    | Creative[ ]Voice[ ]File | FLV\x01[\x01\x04\x05]\x00\x00\x00\x09
    | 2BIT.{8}(?:\0\0|\xff\xff)\0[\x08\x10](?:\0\0|\xff\xff) | nut/multimedia[ ]container\0
    | \x1a\x45\xdf\xa3.{1,8}\x42[\x82\x86\x87\xf2\xf3\xf7] | \x00\x00\x00.ftyp"""
)
# Most recordings that are read from one file; each costs a decoder, however short it is.
MOST_RECORDINGS = 64
# WAV format tags of uncompressed samples: PCM, float, extensible.
_UNCOMPRESSED = (b"\x01\0", b"\x03\0", b"\xfe\xff")


def starts(data: Data) -> list[int]:
    """Offsets at which recordings begin, [0] unless several are joined byte by byte.

    Raises:
      Unreadable: there are more than MOST_RECORDINGS.
    """
    found: list[int] = []
    for begin, end in itertools.pairwise([*_signatures(data), len(data)]):
        found += _with_streams(data, begin, end)
        if len(found) > MOST_RECORDINGS:
            raise Unreadable(
                f"holds more than {MOST_RECORDINGS} recordings, joined byte by byte; give them as "
                "several files."
            )
    return found


def _signatures(data: Data) -> list[int]:
    """0, and the offsets of signatures."""
    # Others, such as WavPack, may keep the head of the file that they were made from.
    is_ac3 = kind_at(data, 0) == "AC-3"
    if not (_HEAD.match(data) or data[:1] == b"\xff" or is_ac3):
        return [0]
    found = [0, *(head.start() for head in _HEAD.finditer(data, 1))]
    # An Ogg recording may have several streams, whose first pages follow each other.
    inner = {
        b
        for a, b in itertools.pairwise(found)
        if data[a : a + 4] == b"OggS" and data.find(b"OggS", a + 4) == b
    }
    return [start for start in found if start not in inner]


def _with_streams(data: Data, begin: int, end: int) -> list[int]:
    """`begin`, and the offsets of streams of frames that follow the recording there."""
    own_kind = kind_at(data, begin)
    if not (own_kind or _HEAD.match(data, begin)):
        return [begin]
    stated_end = _stated_end(data, begin, end)
    if begin < stated_end < end and begins_stream(data, stated_end, end):
        return [begin, *_with_streams(data, stated_end, end)]
    streams: list[int] = []
    # Frames before the end of a container are its sound.
    while (first := last_stream(data, begin, end, own_kind)) and first > max(begin, stated_end - 1):
        streams.insert(0, first)
        end = first
        if len(streams) > MOST_RECORDINGS:  # `starts` refuses them.
            break
    return [begin, *streams]


def _stated_end(data: Data, begin: int, end: int) -> int:
    """Where a recording ends by its header; `begin` if it states no size and can't hold frames."""
    head = data[begin : begin + 28]
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        if is_size(size):
            return begin + 8 + size
        return begin if head[20:22] in _UNCOMPRESSED else end
    if head[:4] == b"RF64":
        return begin + 8 + int.from_bytes(head[20:28], "little")
    if head[:4] == b"riff":
        return begin + int.from_bytes(head[16:24], "little")
    if head[:4] == b"FORM":
        return begin + 8 + int.from_bytes(head[4:8])
    if head[:4] == b".snd" and is_size(size := int.from_bytes(head[8:12])):
        return begin + int.from_bytes(head[4:8]) + size
    if head[4:8] == b"ftyp":
        return _end_of_boxes(data, begin, end)
    if head[:4] == b"caff":
        return _end_of_chunks(data, begin + 8, end)
    return begin


def _end_of_boxes(data: Data, place: int, end: int) -> int:
    """The end of the last box of an MP4, counted from the one at `place`."""
    while place < end:
        size, name = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size == 0 and _is_name(name):
            return end
        if size < 8 or not _is_name(name):
            break
        place += size
    return place


def _end_of_chunks(data: Data, place: int, end: int) -> int:
    """The end of the last chunk of a CAF, counted from the one at `place`."""
    while place < end and _is_name(data[place : place + 4]):
        size = int.from_bytes(data[place + 4 : place + 12], signed=True)
        if size < 0:  # To the end of the file.
            return end
        place += 12 + size
    return place


def _is_name(name: bytes) -> bool:
    return re.fullmatch(rb"[\x20-\x7e\xa9]{4}", name) is not None and name != b"wvpk"
