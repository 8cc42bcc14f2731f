"""Makes the embedded corpus: speaks the demo world, then writes its units and texts as records.

    python -m tools.build_demo_corpus synthesize --work_dir=DIR --human_prompts=PROMPTS
        DIR/wavs/*.wav, 16 kHz mono, and DIR/manifest.jsonl, one clip per row (some minutes)
    python -m tools.build_demo_corpus encode --work_dir=DIR --hubert=FOLDER --output=FOLDER
        FOLDER/{utterances,dialogues}-SPLIT.tfrecord.gz, clips/*.flac and clips/clips.json (the
        ATTRIBUTION.md beside the shipped ones names their authors); and DIR/units.jsonl, the
        manifest with units and durations

Any text-to-speech command will do: `--tts` is a template of one command line with {speaker}, {text}
and {wav}; it is split into arguments before the text goes in, and no shell ever sees the text.
Splits: `train` and `test` are spoken by three voices (answers always by the same one of them),
`unheard_voice` is the test split spoken by a fourth, and `human` are recorded prompts of a real
person, Debian's asterisk-core-sounds-en and -g722 unpacked with `dpkg-deb -x` into one folder.
"""

import argparse
from pathlib import Path

from speechgpt_jax.corpus import text_to_speech
from speechgpt_jax.demo_world import build
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("step", choices=["synthesize", "encode"])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--tts", default=text_to_speech.FLITE, help="default: %(default)s")
    parser.add_argument("--human_prompts", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--processes", type=int, default=2, help="--tts commands at once")
    parser.add_argument("--hubert", type=Path, default=SHIPPED, help="HuBERT and centroids")
    parser.add_argument("--output", type=Path, default=build.SHIPPED_CORPUS)
    args = parser.parse_args()
    with one_line_errors():
        if args.step == "synthesize":
            clips = build.synthesize(args.work_dir, args.tts, args.human_prompts, args.processes)
            build.print_hours(clips)
        else:
            speech2unit = Speech2Unit.from_pretrained(args.hubert)
            build.encode(args.work_dir, speech2unit, args.output)


if __name__ == "__main__":
    main()
