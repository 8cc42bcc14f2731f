"""Word error rate and naturalness of speech synthesized from units, beside the recordings.

    python -m tests.benchmarks.measure_resynthesis --manifest=test.jsonl
    python -m tests.benchmarks.measure_resynthesis --manifest=human.jsonl --voices slt rms kal16

Manifest and scores are those of tools.eval_vocoder, which measures and prints one voice;
`python -m tools.eval_vocoder --help` explains both.
"""

import itertools

from speechgpt_jax import arguments
from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
from speechgpt_jax.evaluation.vocoder import evaluate_vocoder
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.speech import flags
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from tests.benchmarks import docs_table

SOURCES = ("recordings", "units", "reduced units")


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--manifest",
        required=True,
        type=arguments.existing_file,
        help="JSONL of held-out sentences",
    )
    flags.add_vocoder(parser)
    parser.add_argument(
        "--voices",
        nargs="+",
        default=[None],
        help="voices for all rows; default: each row's speaker",
    )
    parser.add_argument(
        "--sentences", type=arguments.positive_int, help="maximum per speaker; default: all"
    )
    parser.add_argument(
        "--table", type=arguments.name, default="resynthesis", help="name of the table"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    rows = read_manifest(args.manifest)
    vocoder, recognise = UnitVocoder.from_pretrained(args.vocoder), WhisperRecogniser()
    columns = [f"{figure}: {source}" for figure in ("WER %", "DNSMOS") for source in SOURCES]
    table = docs_table.Table(args.table, ["sentences", *columns])
    for voice in args.voices:
        scores = evaluate_vocoder(vocoder, rows, recognise, sentences=args.sentences, speaker=voice)
        for speaker, group in itertools.groupby(scores, lambda score: score.speaker):
            speaker_scores = list(group)
            table.add(
                f"{speaker}, voice {voice}" if voice else speaker,
                *(f"{100 * score.word_error_rate:.1f}" for score in speaker_scores),
                *(f"{score.naturalness:.2f}" for score in speaker_scores),
            )
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
