"""Measures how many words are lost between recordings and speech made from their units.

    python -m tools.eval_encoder --manifest=voices/manifest.jsonl
    python -m tools.eval_encoder --manifest=voices/manifest.jsonl --hubert=runs/hubert/hubert

Each row of the manifest is a recording {path, text, speaker}. It is encoded, and its units are
synthesized in the voice VOICE, with their own durations (`units`) and with predicted ones
(`reduced units`). Whisper tiny.en recognises recordings and synthesized speech, one clip at a time.
Printed are word error rates and, in points with a 95 % interval (bootstrap over the sentences), how
far they are above that of the recordings.
"""

from speechgpt_jax import arguments, manifests, shipped
from speechgpt_jax.arguments import existing_file, positive_int
from speechgpt_jax.speech import flags


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--manifest", required=True, type=existing_file, help="table of recordings")
    flags.add_hubert(parser)
    flags.add_vocoder(parser)
    parser.add_argument(
        "--voice",
        help="name or index of the speaker whose voice the vocoder uses; default: slt of the"
        " shipped one, the first speaker of another",
    )
    parser.add_argument("--sentences", type=positive_int, help="maximum per speaker; default: all")
    args = parser.parse_args(argv)

    voice = args.voice or shipped.default_speaker(args.vocoder, "slt")
    from speechgpt_jax.evaluation.encoder import evaluate_encoder
    from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
    from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
    from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

    scores = evaluate_encoder(
        Speech2Unit.from_pretrained(args.hubert),
        UnitVocoder.from_pretrained(args.vocoder),
        manifests.read_manifest(args.manifest),
        WhisperRecogniser(),
        voice=voice,
        sentences=args.sentences,
    )
    print(f"{'speaker':<16}{'source':<16}{'WER %':>8}{'above originals':>18}{'95 %':>16}")
    for score in scores:
        low, high = score.interval
        print(
            f"{score.speaker:<16}{score.source:<16}{100 * score.word_error_rate:8.1f}"
            f"{100 * score.above_original:18.1f}{100 * low:10.1f}{100 * high:6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    arguments.run(main)
