"""Measures a vocoder: word error rate and naturalness of speech synthesized from units.

    python -m tools.eval_vocoder --vocoder=speechgpt_jax/assets/vocoder --manifest=test.jsonl

Each row of the manifest is a sentence {path, text, units, durations, speaker}. It is synthesized
from its units with its own durations (`units`) and with predicted durations (`reduced units`, as
for a language model's answers). Words are recognised by Whisper tiny.en, one sentence at a time;
naturalness is DNSMOS overall (Reddy et al. 2022), 1 to 5.
"""

from absl import flags

from speechgpt_jax import arguments
from speechgpt_jax.arguments import existing_file, existing_folder, positive_int

VOCODER = arguments.define(
    "vocoder", existing_folder, None, "Folder of the vocoder.", required=True
)
MANIFEST = arguments.define(
    "manifest", existing_file, None, "JSONL of held-out sentences.", required=True
)
SENTENCES = arguments.define(
    "sentences", positive_int, None, "Measure only the first SENTENCES of each speaker."
)
VOICE = flags.DEFINE_string("voice", None, "Synthesize with this speaker's voice, not each row's.")


def main() -> None:
    from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
    from speechgpt_jax.evaluation.vocoder import evaluate_vocoder
    from speechgpt_jax.files import read_manifest
    from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

    rows = read_manifest(MANIFEST.value)
    vocoder = UnitVocoder.from_pretrained(VOCODER.value)
    scores = evaluate_vocoder(
        vocoder, rows, WhisperRecogniser(), sentences=SENTENCES.value, speaker=VOICE.value
    )
    print(f"{'speaker':<10}{'source':<16}{'WER %':>8}{'DNSMOS':>8}")
    for score in scores:
        print(
            f"{score.speaker:<10}{score.source:<16}{score.word_error_rate:8.1f}"
            f"{score.naturalness:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    arguments.run_with_flags(main)
