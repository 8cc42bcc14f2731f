"""Words that are lost from recording to units and back, by speaker, for one or several encoders.

    python -m tests.benchmarks.measure_encoder --manifest=voices.jsonl \\
        --hubert runs/hubert_from_whisper/hubert runs/hubert/hubert

`python -m tools.eval_encoder --help` explains the figures; it measures one encoder.
"""

from speechgpt_jax import arguments
from speechgpt_jax.evaluation.encoder import EncoderScore, evaluate_encoder
from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from tests.benchmarks import docs_table


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--manifest", required=True, type=arguments.existing_file, help="that of tools.eval_encoder"
    )
    parser.add_argument(
        "--hubert",
        nargs="+",
        required=True,
        type=arguments.existing_folder,
        help="encoders to compare",
    )
    parser.add_argument(
        "--sentences", type=arguments.positive_int, help="maximum per speaker; default: all"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    rows = read_manifest(args.manifest)
    vocoder, recognise = UnitVocoder.from_pretrained(), WhisperRecogniser()
    table = docs_table.Table("encoder", ["speaker: WER %", "recordings", "units", "reduced units"])
    for folder in args.hubert:
        speech2unit = Speech2Unit.from_pretrained(folder)
        scores = evaluate_encoder(
            speech2unit, vocoder, rows, recognise, voice="slt", sentences=args.sentences
        )
        by_speaker: dict[str, list[EncoderScore]] = {}
        for score in scores:
            by_speaker.setdefault(score.speaker, []).append(score)
        for speaker, speaker_scores in by_speaker.items():
            table.add(f"{speaker}, {folder}", *map(cell, speaker_scores))
    if args.update_docs:
        table.update_docs()


def cell(score: EncoderScore) -> str:
    """ "12.0 (+3.1 to +8.4)": word error rate in percent, and the interval of what was added."""
    if score.source == "original":
        return f"{100 * score.word_error_rate:.1f}"
    low, high = score.interval
    return f"{100 * score.word_error_rate:.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    arguments.run(main)
