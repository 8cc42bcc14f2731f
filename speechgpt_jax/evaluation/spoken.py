"""Metrics of spoken answers: a vocoder synthesizes them, recognisers transcribe the speech."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from speechgpt_jax.evaluation.metrics import normalize, rate, wer
from speechgpt_jax.evaluation.recognisers import VocabularyRecogniser, WhisperRecogniser
from speechgpt_jax.prompts import Response
from speechgpt_jax.shipped import SHIPPED_VOCODER, SHIPPED_VOICE
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

# Answers synthesized at a time.
BATCH = 16

Recogniser = Callable[[np.ndarray], str]  # wav float32 [samples] at 16 kHz -> text


class SpokenAnswers:
    """A metric function of answers with units, like those of SeqIO.

    Figures of each recogniser, with intervals as in `metrics.rate`:

    - `NAME_wer`: word error rate of the speech against the text that it should say: the text to be
      read aloud, or the model's own text answer.
    - `NAME_answer_wer`: word error rate of the speech against the right answer.
    - `NAME_understood`: share of examples whose transcript equals the right answer, or the text to
      be read aloud.

    An answer without units is understood as silence. There are no figures if any target has no
    units, since the task is then not one of speech, or if no target has words to compare with.
    """

    def __init__(
        self,
        vocoder: UnitVocoder,
        speaker: str,
        recognisers: Callable[[Sequence[str]], Mapping[str, Recogniser]],
    ):
        """
        Args:
          vocoder: synthesizes the answers.
          speaker: whose voice it uses.
          recognisers: the texts that are to be understood -> recognisers by their names.

        Raises:
          UserError: the vocoder has no such speaker.
        """
        vocoder.config.speaker_index(speaker)
        self._vocoder, self._speaker, self._recognisers = vocoder, speaker, recognisers

    @classmethod
    def by_default(cls) -> "SpokenAnswers":
        """Uses the shipped vocoder, Whisper, and PocketSphinx that knows the texts' words alone."""
        whisper = WhisperRecogniser()
        return cls(
            UnitVocoder.from_pretrained(SHIPPED_VOCODER),
            SHIPPED_VOICE,
            lambda texts: {"whisper": whisper, "pocketsphinx": VocabularyRecogniser(texts)},
        )

    def __call__(
        self, targets: Sequence[Response], predictions: Sequence[Response]
    ) -> dict[str, float]:
        """Figures of the predictions."""
        right = [normalize(target.text or target.source) for target in targets]
        if not all(target.units for target in targets) or not any(right):
            return {}
        wavs = self._synthesized([prediction.units for prediction in predictions])
        # Silence is compared with the right text: an empty reference has no error rate.
        model_texts = [
            normalize(p.text) or text for p, text in zip(predictions, right, strict=True)
        ]
        figures: dict[str, float] = {}
        for name, recognise in self._recognisers([*right, *model_texts]).items():
            transcripts = [normalize(recognise(wav)) if len(wav) else "" for wav in wavs]
            figures |= wer(model_texts, transcripts, f"{name}_wer")
            figures |= wer(right, transcripts, f"{name}_answer_wer")
            understood = [a == b for a, b in zip(right, transcripts, strict=True)]
            figures |= rate(f"{name}_understood", understood, np.ones(len(understood)))
        return figures

    def _synthesized(self, units: Sequence[list[int]]) -> list[np.ndarray]:
        """Speech of each answer, float32 [samples] at 16 kHz; [0] where there are no units."""
        wavs = [np.zeros(0, np.float32)] * len(units)
        spoken = [i for i, answer_units in enumerate(units) if answer_units]
        for start in range(0, len(spoken), BATCH):
            batch = spoken[start : start + BATCH]
            synthesized = self._vocoder.synthesize(
                [units[i] for i in batch], None, [self._speaker] * len(batch)
            )
            for i, wav in zip(batch, synthesized, strict=True):
                wavs[i] = wav
        return wavs
