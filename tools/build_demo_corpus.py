"""Builds the shipped corpus: synthesizes the demo world, then writes units and texts as records.

    python -m tools.build_demo_corpus synthesize --work_dir=DIR --human_prompts=PROMPTS
        DIR/wavs/*.wav, 16 kHz mono, and DIR/manifest.jsonl, one clip per row (some minutes)
    python -m tools.build_demo_corpus encode --work_dir=DIR --hubert=HUBERT --output=OUTPUT
        OUTPUT/{utterances,dialogues}-SPLIT.tfrecord.gz, clips/*.flac and clips/clips.json (the
        ATTRIBUTION.md beside the shipped ones names their authors); and DIR/units.jsonl, the
        manifest with units and durations

DIR is on this machine, as the commands of --tts write to it; other paths may be on gs://.

`--tts` is a template of any text-to-speech command, with {speaker}, {text} and {wav}. It is split
into arguments before the text is inserted, and runs without a shell.

Splits: `train` and `test` have three voices (answers always the same one), `unheard_voice` has the
texts of `test` in a fourth voice, and `human` has recorded prompts of a human: Debian's packages
asterisk-core-sounds-en and -g722, unpacked with `dpkg-deb -x` into one folder.
"""

from collections.abc import Sequence
from pathlib import Path

from speechgpt_jax import arguments
from speechgpt_jax.corpus import text_to_speech
from speechgpt_jax.demo_world import build
from speechgpt_jax.demo_world.world import MOST_FURTHER
from speechgpt_jax.speech import flags
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit

STEPS = {"synthesize": "synthesizes the demo world", "encode": "writes units and texts as records"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    synthesize, encode = (steps.add_parser(name, help=text) for name, text in STEPS.items())
    for step in (synthesize, encode):
        step.add_argument(
            "--work_dir",
            type=arguments.local_output_folder,
            required=True,
            help="folder of the clips, on this machine",
        )
    add = synthesize.add_argument
    add("--tts", type=arguments.nonempty, default=text_to_speech.FLITE, help="default: %(default)s")
    for name, help in (
        (
            "more",
            "further strings of randomly ordered words; each clip's speed, room and microphone are"
            " changed",
        ),
        ("short", "further strings of one to three words"),
        ("answer_voice", "further strings of randomly ordered words, in the voice of the answers"),
    ):
        number = arguments.at_least(0, at_most=MOST_FURTHER)
        add(f"--{name}_sentences", type=number, default=0, help=help)
    add("--human_prompts", type=arguments.existing_folder, help="folder of the packages")
    add(
        "--processes",
        type=arguments.positive_int,
        default=2,
        help="parallel --tts commands",
    )
    add = encode.add_argument
    flags.add_hubert(encode)
    add(
        "--voices",
        type=arguments.existing_folder,
        help="further recordings for training, by tools.record_voices",
    )
    add(
        "--output",
        type=arguments.output_folder,
        default=str(build.SHIPPED_CORPUS),
        help="folder of the records; default: the shipped corpus, which is overwritten",
    )
    args = parser.parse_args(argv)
    work_dir = Path(args.work_dir)
    if args.step == "synthesize":
        clips = build.synthesize(
            work_dir,
            args.tts,
            args.human_prompts,
            args.processes,
            args.more_sentences,
            args.short_sentences,
            args.answer_voice_sentences,
        )
        build.print_hours(clips)
    else:
        speech2unit = Speech2Unit.from_pretrained(args.hubert)
        build.encode(work_dir, speech2unit, args.output, args.voices)


if __name__ == "__main__":
    arguments.run(main)
