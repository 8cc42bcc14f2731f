"""Checks that a file of sound is whole.

libsndfile and FFmpeg stop, or continue, without an error where a file is cut off or damaged.
"""

import math
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
    """False for 0 and the largest numbers: programs that write to a pipe don't know the size."""
    return stated != 0 and stated >> 16 not in (0x7FFF, 0x8000, 0xFFFF)


def check_size(stated: int, present: int, unit: str) -> None:
    """Raises Unreadable if fewer bytes or samples are present than stated."""
    # The pad byte after odd data may be missing.
    if is_size(stated) and present + 1 < stated:
        raise Unreadable(
            f"is cut off: its header states {stated} {unit} of sound, {present} are there. "
            "Copy it again."
        )


def check_stated_size(sound: soundfile.SoundFile, data: Data) -> int:
    """Refuses a file that ends before the size that its header states.

    Returns:
      samples per channel, without bytes behind them that libsndfile takes for sound.
    """
    # libsndfile corrects sizes without an error; its log has both.
    log = sound.extra_info
    found = re.findall(
        r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.M
    )
    sizes = [(int(stated), int(present), "bytes") for stated, present in found]
    samples = _stated_samples(sound, data)
    sizes.append((samples, sound.frames, "samples"))
    for stated, present, unit in sizes:
        check_size(stated, present, unit)
    return min(samples, sound.frames) if is_size(samples) else sound.frames


def _stated_samples(sound: soundfile.SoundFile, data: Data) -> int:
    """Samples per channel by the header of a format that libsndfile reads to the file's end; or 0.

    Other bytes behind the samples, such as a tag, are then sound for libsndfile.
    """
    log = sound.extra_info
    counts: list[str] | list[bytes] = []
    if sound.format == "W64":
        return _stated_by_w64(sound, data)
    if sound.format == "SVX":
        width = 1 if sound.subtype == "PCM_S8" else 2
        counts = re.findall(r"^ *BODY : (\d+)", log, re.M)
        return int(counts[0]) // (width * sound.channels) if counts else 0
    if sound.format == "NIST":
        counts = re.findall(rb"sample_count -i (\d+)", data[:1024])
    elif sound.format in ("AVR", "MPC2K"):
        counts = re.findall(r"^  Frames +: (\d+)$", log, re.M)
    elif sound.format in ("MAT4", "MAT5"):
        matrices = r"^ *Cols +: (\d+)" if sound.format == "MAT4" else r" Cols : (\d+)$"
        counts = re.findall(matrices, log, re.M)[-1:]
    elif sound.format == "WVE":
        counts = re.findall(r"^Data length (\d+) should be", log, re.M)
    return int(counts[0]) if counts else 0


def _stated_by_w64(sound: soundfile.SoundFile, data: Data) -> int:
    start = data.find(_W64_DATA, 0, 2**16) + 24
    stated = int.from_bytes(data[start - 8 : start], "little") - 24
    block = re.search(r"^ *Block Align +: ([1-9]\d*)$", sound.extra_info, re.M)
    # A writer to a pipe knows no size.
    if start < 24 or not block or not 0 < stated < 2**48:
        return 0
    # Of ADPCM and GSM; other blocks are one sample of all channels.
    samples = re.search(r"^ *Samples/Block +: (\d+)$", sound.extra_info, re.M)
    return math.ceil(stated / int(block[1])) * (int(samples[1]) if samples else 1)


def check_container_size(data: Data) -> None:
    """Refuses an AVI, ASF, VOC, NUT or MPEG-TS that ends before a size or an end that it states."""
    if data[:4] == b"RIFF":  # AVI, whose stated duration may be an estimate.
        check_size(int.from_bytes(data[4:8], "little"), len(data) - 8, "bytes")
    elif data[:16] == _ASF:
        _check_asf(data)
    elif data[:19] == b"Creative Voice File":
        _check_voc(data)
    elif data[:4] == b"nut/":
        # The last packet of a NUT is its index. Before its check sum of 4 bytes it has its size.
        start = len(data) - int.from_bytes(data[-12:-4])
        if start < 0 or data[start : start + 8] != _NUT_INDEX:
            raise Unreadable("is cut off: the index at its end is missing. Copy it again.")
    for mark, size in ((0, 188), (4, 192)):  # MPEG-TS, without and with time stamps.
        if data[mark : mark + 3 * size + 1 : size] == b"GGGG" and len(data) % size:
            raise Unreadable(
                f"is cut off: its last packet of {size} bytes is not complete. Copy it again."
            )


# Identifiers of an ASF file and of its object of properties; the mark of a NUT's index.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_NUT_INDEX = bytes.fromhex("4e58dd672f23e64e")
# Identifier of the samples of a W64, before their size of 8 bytes.
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


def _check_asf(data: Data) -> None:
    # FFmpeg doesn't believe a duration if the size beside it is another one than the file's.
    start = data.find(_ASF_PROPERTIES, 0, 2**16)
    properties = data[start : start + 96] if start >= 0 else b""
    is_broadcast = len(properties) < 96 or properties[88] & 1  # Its writer knew no size.
    if not is_broadcast:
        check_size(int.from_bytes(properties[40:48], "little"), len(data), "bytes")


def _check_voc(data: Data) -> None:
    place = int.from_bytes(data[20:22], "little")
    while place < len(data) and data[place]:  # A block of type 0 is the last.
        stated = int.from_bytes(data[place + 1 : place + 4], "little")
        place += 4
        check_size(stated, max(len(data) - place, 0), "bytes")
        place += stated


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
