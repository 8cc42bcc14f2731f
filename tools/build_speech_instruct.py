"""SpeechInstruct of your own: training data of the three stages, by Apache Beam.

    python -m tools.build_speech_instruct modality_adaptation --units=UNITS --output=stage1
    python -m tools.build_speech_instruct cross_modal_instruction --units=UNITS --output=stage2
    python -m tools.build_speech_instruct chain_of_modality --dialogues=FILE --output=stage3 \\
        --tts="flite -voice {speaker} -t {text} -o {wav}" --question_voices=slt,rms,kal16

UNITS is the output of tools.extract_units; each of its shards becomes one of

    modality_adaptation        units-*.txt: unit text, one recording per line
    cross_modal_instruction    asr-*.jsonl, tts-*.jsonl: units -> text and text -> units, each under
                               one of 100 descriptions, for rows that have a `text`

FILE is JSONL, TSV or CSV with a `question` and an `answer` per row, and becomes shards of

    chain_of_modality          speech_to_speech-*.jsonl, speech_to_text-*.jsonl,
                               text_to_speech-*.jsonl, text_to_text-*.jsonl: the four forms

JSONL has a `prefix` and a `plain_text` per line, like the published SpeechInstruct. The speech of a
dialogue is synthesized by a command (--tts, where {speaker} is one of the voices) and encoded by
--hubert, or a text-to-unit model writes its units (--text_to_unit=RUN).

Rejected rows are in rejects-*.jsonl with the `reason`. As with tools.extract_units, the same
command resumes a killed run, the output does not depend on the number of workers, and all other
flags are Beam's (--runner).
"""

from collections.abc import Sequence

from speechgpt_jax import arguments, prompts
from speechgpt_jax.arguments import at_least, nonempty, output_folder, positive_int, utf8
from speechgpt_jax.corpus import speech_instruct
from speechgpt_jax.shipped import SHIPPED_HUBERT


def main(argv: Sequence[str] | None = None) -> None:
    args, beam_arguments = make_parser().parse_known_args(argv)
    if args.step == "modality_adaptation":
        speech_instruct.modality_adaptation(args.units, args.output, beam_arguments)
    elif args.step == "cross_modal_instruction":
        speech_instruct.cross_modal_instruction(
            args.units, args.output, args.prefix, beam_arguments
        )
    else:
        settings = speech_instruct.DialogueSettings(
            tts=args.tts,
            text_to_unit=args.text_to_unit,
            hubert=args.hubert,
            question_voices=args.question_voices,
            answer_voice=args.answer_voice,
            prefix=args.prefix,
            max_answer_words=args.max_answer_words,
            max_new_tokens=args.max_new_tokens,
        )
        speech_instruct.chain_of_modality(
            args.dialogues, args.output, settings, args.shard_size, beam_arguments
        )


def voices(text: str) -> list[str]:
    """Type of --question_voices: comma-separated names."""
    return [nonempty(name).strip() for name in text.split(",")]


def make_parser() -> arguments.Parser:
    parser = arguments.Parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    adaptation = steps.add_parser("modality_adaptation", help="unit text")
    instruction = steps.add_parser("cross_modal_instruction", help="units and their text")
    chain = steps.add_parser("chain_of_modality", help="the four forms of dialogues")
    for step in (adaptation, instruction, chain):
        step.add_argument("--output", type=output_folder, required=True, help="folder")
    for step in (adaptation, instruction):
        step.add_argument(
            "--units", type=nonempty, required=True, help="folder that tools.extract_units wrote"
        )
    for step in (instruction, chain):
        step.add_argument(
            "--prefix",
            type=utf8,
            default=prompts.DEFAULT_PREFIX,
            help="the system prompt; default: the demo's",
        )
    add = chain.add_argument
    add(
        "--dialogues",
        type=nonempty,
        required=True,
        help="JSONL, TSV or CSV with `question` and `answer`",
    )
    add("--tts", type=nonempty, help="command with {speaker}, {text} and {wav}")
    add("--text_to_unit", type=nonempty, help="run that writes units, in place of --tts")
    add(
        "--hubert",
        type=nonempty,
        default=SHIPPED_HUBERT,
        help="folder; encodes the sound of --tts; must be the encoder of extract_units; default:"
        " the shipped one",
    )
    add(
        "--question_voices",
        type=voices,
        default=["slt"],
        help="values of {speaker} for questions, comma-separated; default: slt",
    )
    add("--answer_voice", type=nonempty, default="slt", help="value of {speaker} for every answer")
    add("--max_answer_words", type=at_least(0), default=35, help="longer answers are rejected")
    add("--max_new_tokens", type=positive_int, default=512, help="limit of --text_to_unit")
    add("--shard_size", type=positive_int, default=250, help="dialogues per shard")
    return parser


if __name__ == "__main__":
    arguments.run(main)
