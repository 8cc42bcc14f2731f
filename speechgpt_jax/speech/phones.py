"""Which phone is said when: of flite's voices by flite itself, of people by forced alignment."""

import re
import subprocess

import numpy as np

from speechgpt_jax.speech.audio import SAMPLE_RATE

SAME_PHONES = {"ax": "ah", "pau": "sil"}


def flite_phones(text: str, voice: str) -> list[tuple[str, float]]:
    """[(phone, its end in seconds), ...] as flite itself planned them."""
    command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", "none"]
    spoken = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = (item.split(":") for item in spoken.split())
    return [(SAME_PHONES.get(phone, phone), float(end)) for phone, end in pairs]


class PocketsphinxAligner:
    """phones = aligner(wav, text), in the same form as flite's; [] where it finds none."""

    def __init__(self):
        import pocketsphinx

        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, bestpath=False, loglevel="FATAL")

    def __call__(self, wav: np.ndarray, text: str) -> list[tuple[str, float]]:
        decoder = self._decoder
        words = [word for word in re.findall(r"[a-z']+", text.lower()) if decoder.lookup_word(word)]
        pcm = (np.clip(wav, -1, 1) * 32767).astype(np.int16).tobytes()
        try:
            decoder.set_align_text(" ".join(words))
            decode(decoder, pcm)
            decoder.set_alignment()
            decode(decoder, pcm)
        except RuntimeError:
            return []
        phones = [
            (p.name.lower(), (p.start + p.duration) / 100)
            for w in decoder.get_alignment() or []
            for p in w
        ]
        return [("sil" if name in ("sil", "+spn+", "+nsn+") else name, end) for name, end in phones]


def decode(decoder, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def frame_phones(phones: list[tuple[str, float]], num_frames: int) -> list[str]:
    """The phone at the middle of each frame (12.5 ms into it)."""
    ends = [end for _, end in phones]
    at = np.searchsorted(ends, np.arange(num_frames) * 0.02 + 0.0125)
    return [phones[min(i, len(phones) - 1)][0] for i in at]
