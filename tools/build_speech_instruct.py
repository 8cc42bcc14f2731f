"""SpeechInstruct of your own: training data of the three stages, by Apache Beam.

    python -m tools.build_speech_instruct modality_adaptation --units=UNITS --output=stage1
    python -m tools.build_speech_instruct cross_modal_instruction --units=UNITS --output=stage2
    python -m tools.build_speech_instruct chain_of_modality --dialogues=FILE --output=stage3 \\
        --tts="flite -voice {speaker} -t {text} -o {wav}" --question_voices=slt,rms,kal16

UNITS is the output of tools.extract_units; each of its shards becomes one of

    modality_adaptation        units-*.txt: unit text, one recording per line
    cross_modal_instruction    asr-*.jsonl, tts-*.jsonl: units -> text and text -> units, each under
                               one of 100 descriptions, for rows that have a `text`

FILE is JSONL or TSV with a `question` and an `answer` per row, and becomes shards of

    chain_of_modality          speech_to_speech-*.jsonl, speech_to_text-*.jsonl,
                               text_to_speech-*.jsonl, text_to_text-*.jsonl: the four forms

JSONL has a `prefix` and a `plain_text` per line, as SpeechInstruct has. The speech of a dialogue is
made by a command (--tts, where {speaker} is one of the voices) and encoded by --hubert, or is
written as units by a model of ours (--text_to_unit=RUN).

Rejected rows are in rejects-*.jsonl with the `reason`. The same command resumes after a kill;
output does not depend on the number of workers; all other flags are Beam's (--runner): see
tools.extract_units, whose shards are made in the same way.
"""

import argparse
from collections.abc import Sequence

from speechgpt_jax import prompts
from speechgpt_jax.corpus import speech_instruct
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED

STEPS = ("modality_adaptation", "cross_modal_instruction", "chain_of_modality")


def main(arguments: Sequence[str] | None = None) -> None:
    args, beam_arguments = parser().parse_known_args(arguments)
    if args.step == "chain_of_modality":
        if not args.dialogues:
            raise UserError("chain_of_modality needs --dialogues, a JSONL or TSV file.")
        settings = speech_instruct.DialogueSettings(
            tts=args.tts,
            text_to_unit=args.text_to_unit,
            hubert=args.hubert,
            question_voices=args.question_voices.split(","),
            answer_voice=args.answer_voice,
            prefix=args.prefix,
            max_answer_words=args.max_answer_words,
            max_new_tokens=args.max_new_tokens,
        )
        speech_instruct.chain_of_modality(
            args.dialogues, args.output, settings, args.shard_size, beam_arguments
        )
    elif not args.units:
        raise UserError(f"{args.step} needs --units, the output of tools.extract_units.")
    elif args.step == "modality_adaptation":
        speech_instruct.modality_adaptation(args.units, args.output, beam_arguments)
    else:
        speech_instruct.cross_modal_instruction(
            args.units, args.output, args.prefix, beam_arguments
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--units", help="folder that tools.extract_units wrote")
    parser.add_argument("--dialogues", help="JSONL or TSV with `question` and `answer`")
    parser.add_argument("--prefix", default=prompts.DEFAULT_PREFIX, help="the system prompt")
    parser.add_argument("--tts", help="command with {speaker}, {text} and {wav}")
    parser.add_argument("--text_to_unit", help="run of ours that writes units, in place of --tts")
    parser.add_argument("--hubert", default=str(SHIPPED), help="encodes the sound of --tts")
    parser.add_argument("--question_voices", default="slt", help="for {speaker}, comma-separated")
    parser.add_argument("--answer_voice", default="slt", help="for {speaker}")
    parser.add_argument("--max_answer_words", type=int, default=35, help="longer ones are rejected")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="of --text_to_unit")
    parser.add_argument("--shard_size", type=int, default=250, help="dialogues per shard")
    return parser


if __name__ == "__main__":
    with one_line_errors():
        main()
