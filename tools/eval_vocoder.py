"""Measures a vocoder: word error rate and naturalness of speech synthesized from units.

    python -m tools.eval_vocoder --vocoder=speechgpt_jax/assets/vocoder --manifest=test.jsonl

Each row of the manifest is a sentence {path, text, units, durations, speaker}. It is synthesized
from its units with its own durations (`units`) and with predicted durations (`reduced units`, as
for a language model's answers). Words are recognised by Whisper tiny.en, one sentence at a time;
naturalness is DNSMOS overall (Reddy et al. 2022), 1 to 5.
"""

from speechgpt_jax import arguments, manifests
from speechgpt_jax.arguments import existing_file, existing_folder, positive_int


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--vocoder", required=True, type=existing_folder, help="its folder")
    parser.add_argument(
        "--manifest", required=True, type=existing_file, help="JSONL of held-out sentences"
    )
    parser.add_argument("--sentences", type=positive_int, help="maximum per speaker; default: all")
    parser.add_argument("--voice", help="voice for all rows; default: each row's speaker")
    args = parser.parse_args(argv)

    from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
    from speechgpt_jax.evaluation.vocoder import evaluate_vocoder
    from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

    scores = evaluate_vocoder(
        UnitVocoder.from_pretrained(args.vocoder),
        manifests.read_manifest(args.manifest),
        WhisperRecogniser(),
        sentences=args.sentences,
        speaker=args.voice,
    )
    print(f"{'speaker':<10}{'source':<16}{'WER %':>8}{'DNSMOS':>8}")
    for score in scores:
        print(
            f"{score.speaker:<10}{score.source:<16}{100 * score.word_error_rate:8.1f}"
            f"{score.naturalness:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    arguments.run(main)
