"""Checks that a file of sound is whole.

libsndfile and FFmpeg stop, or go on, without an error where a file is cut off or damaged.
"""

import re
import zlib

import soundfile

from speechgpt_jax.speech.audio_files.frames import Data

# Accepted difference between decoded and stated length: headers may count the padding of encoders,
# two or three frames of about 26 ms.
TOLERANCE_SECONDS = 0.2

# Each byte with its bits in reverse order.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Unreadable(Exception):
    """Reason why a recording can't be read, without the name of the file before it."""


def is_size(stated: int) -> bool:
    """Whether a header's number is a size: a writer to a pipe states the largest, or 0."""
    return stated != 0 and stated >> 16 not in (0x7FFF, 0x8000, 0xFFFF)


def check_size(stated: int, present: int, unit: str) -> None:
    """Raises Unreadable if fewer bytes or samples are present than stated."""
    # The pad byte after odd data may be missing.
    if is_size(stated) and present + 1 < stated:
        raise Unreadable(
            f"is cut off: its header states {stated} {unit} of sound, {present} are there. "
            "Copy it again."
        )


def check_stated_size(sound: soundfile.SoundFile, data: Data) -> None:
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
        check_size(stated, present, unit)


def check_length(decoded_seconds: float, stated_seconds: float) -> None:
    """Raises Unreadable if fewer seconds were decoded than the header states."""
    if decoded_seconds + TOLERANCE_SECONDS < stated_seconds:
        raise Unreadable(
            f"is damaged or cut off: its header states {stated_seconds:.2f} s, only "
            f"{decoded_seconds:.2f} s can be decoded. Copy it again."
        )


def check_ogg_pages(data: Data) -> None:
    """Raises Unreadable unless an Ogg file is whole pages, undamaged and none of them missing.

    Decoders skip a damaged page, and fill the gap of a missing one with what might have been there.
    """
    if data[:4] != b"OggS":
        return
    place, number_after = 0, {}
    while data[place : place + 4] == b"OggS":
        head = data[place : place + 27]
        segments = data[place + 27 : place + 27 + head[26]] if len(head) == 27 else b""
        end = place + 27 + len(segments) + sum(segments)
        if len(head) < 27 or len(segments) < head[26] or end > len(data):
            raise Unreadable("is cut off: its last Ogg page is not complete. Copy it again.")
        if _ogg_checksum(data[place:end]) != int.from_bytes(head[22:26], "little"):
            raise Unreadable(f"is damaged: the Ogg page at byte {place} is wrong. Copy it again.")
        stream, number = head[14:18], int.from_bytes(head[18:22], "little")
        if head[5] & 2:  # The first page of a stream, which may have the name of an earlier one.
            number_after.pop(stream, None)
        if number != number_after.get(stream, number):
            raise Unreadable(
                f"is damaged: an Ogg page is missing before byte {place}. Copy it again."
            )
        # Recordings of a radio stream have its headers first, then pages from its middle.
        if head[6:14] != bytes(8):
            number_after[stream] = number + 1
        place = end
    after = bytes(data[place:]).strip(b"\0")
    if b"OggS" in after:
        raise Unreadable(f"is damaged: no Ogg page begins at byte {place}. Copy it again.")
    if after and b"OggS".startswith(after):
        raise Unreadable("is cut off: its last Ogg page is not complete. Copy it again.")
    if after:
        raise Unreadable(f"has {len(after)} bytes after its last Ogg page; remove them.")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of a page whose own checksum counts as 0.

    Ogg's is that of zlib with the bits in reverse order, and without its inversions.
    """
    reverse = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    crc = zlib.crc32(reverse, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def xing_header(data: Data) -> tuple[float, int]:
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
