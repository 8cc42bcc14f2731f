"""Adds units and markers to a run: to its tokenizer, its embedding and its output layer.

    python -m tools.convert_llama from_hf Qwen2.5-0.5B runs/qwen
    python -m tools.extend_vocabulary runs/qwen runs/qwen_units --units=1000

The new run has the tokens <0> to <999>, <sosp>, <eosp>, [Human], [SpeechGPT], <eoh> and <eos>, one
id each, after those of the base. Train from it by --gin.train.start_from=runs/qwen_units, with
runs/qwen_units/tokenizer as the tokenizer; `tools.convert_llama to_hf` exports both.
"""

from absl import logging

from speechgpt_jax import arguments, prompts
from speechgpt_jax.conversion import extend_vocabulary
from speechgpt_jax.gin_utils import hush_libraries


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("base", type=arguments.location, help="a run, or one of its checkpoints")
    parser.add_argument("out", type=arguments.new_folder, help="the new run")
    parser.add_argument(
        "--units", type=arguments.at_least(1, at_most=100_000), default=1000, help="number of units"
    )
    parser.add_argument(
        "--noise",
        type=arguments.finite_float(at_least=0, at_most=1),
        default=0.1,
        help="standard deviation of the new rows, relative to that of the old ones",
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="seed of the noise")
    parser.add_argument(
        "--template",
        choices=tuple(prompts.TEMPLATES),
        help="template of dialogues; default: the one saved with the base's tokenizer. Name a chat"
        " model's own template to query it (infer --task=instruct) before training",
    )
    args = parser.parse_args(argv)
    hush_libraries()
    # Orbax logs errors that it also raises.
    logging.set_verbosity(logging.FATAL)
    tokens = prompts.added_tokens(args.units)
    ids = extend_vocabulary.extend(
        args.base, args.out, tokens, args.noise, args.seed, args.template
    )
    print(f"Written: {args.out}, whose vocab_size is {ids.stop}; new ids {ids[0]} to {ids[-1]}")


if __name__ == "__main__":
    arguments.run(main)
