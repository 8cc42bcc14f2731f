"""Phones of a recording with their times: flite's own for its voices, else forced alignment.

Phones are [(name, end in seconds), ...], in order, from the start of the recording.
"""

import re
import subprocess
from typing import Any

import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.recordings import HOP, WINDOW

Phones = list[tuple[str, float]]

# flite's names and those of the CMU dictionary for the same phones.
SAME_PHONES = {"ax": "ah", "pau": "sil"}
SILENCES = ("sil", "+spn+", "+nsn+")


def flite_phones(text: str, voice: str) -> Phones:
    """The phones of `text` as flite's `voice` speaks it.

    Raises:
      UserError: flite is not installed, or has no such voice or no phones for the text.
    """
    command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", "none"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(
            "flite is not installed, but the phones of its voices are needed; on Debian or Ubuntu:"
            " apt-get install flite."
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"flite failed for voice {voice!r} and text {text[:60]!r}: {error.stderr.strip()};"
            " `flite -lv` lists its voices."
        ) from error
    pairs = [item.rpartition(":") for item in printed.split()]
    try:
        phones = [(SAME_PHONES.get(phone, phone), float(end)) for phone, _, end in pairs]
    except ValueError as error:
        raise UserError(f"flite has no phones for {text[:60]!r}: {printed[:60]!r}.") from error
    if not phones:
        raise UserError(f"flite has no phones for voice {voice!r} and text {text[:60]!r}.")
    return phones


class PocketsphinxAligner:
    """Forced alignment by PocketSphinx's acoustic model.

    phones = aligner(wav, text), [] where no alignment is found.
    """

    def __init__(self):
        import pocketsphinx  # Imported here: flite's phones do without it.

        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, bestpath=False, loglevel="FATAL")

    def __call__(self, wav: np.ndarray, text: str) -> Phones:
        """wav [S] at 16 kHz, transcript -> phones; words that PocketSphinx lacks are skipped."""
        decoder = self._decoder
        words = [word for word in re.findall(r"[a-z']+", text.lower()) if decoder.lookup_word(word)]
        try:
            # Words first, then the phones within them.
            decoder.set_align_text(" ".join(words))
            decode(decoder, wav)
            decoder.set_alignment()
            decode(decoder, wav)
        except RuntimeError:
            return []
        phones = [
            (phone.name.lower(), (phone.start + phone.duration) / 100)
            for word in decoder.get_alignment() or []
            for phone in word
        ]
        return [("sil" if name in SILENCES else name, end) for name, end in phones]


def decode(decoder: Any, wav: np.ndarray) -> None:
    """Runs the search of a pocketsphinx.Decoder over float32 [samples] at 16 kHz."""
    pcm = (np.clip(wav, -1, 1) * 32767).astype(np.int16).tobytes()
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def frame_phones(phones: Phones, num_frames: int) -> list[str]:
    """The phone at the centre of each frame, which is 12.5 ms after its start.

    [("a", 0.03), ("b", 0.1)], 3 -> ["a", "b", "b"]; frames past the last phone get the last phone.
    """
    ends = [end for _, end in phones]
    centres = (np.arange(num_frames) * HOP + WINDOW / 2) / SAMPLE_RATE
    at = np.searchsorted(ends, centres)
    return [phones[min(i, len(phones) - 1)][0] for i in at]
