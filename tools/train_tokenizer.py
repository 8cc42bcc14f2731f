"""Trains a SentencePiece model with LLaMA's settings and adds units and markers to it.

    python -m tools.train_tokenizer --text=FILE --output=FOLDER --vocab_size=32000 --num_units=1000
    python -m tools.train_tokenizer --model=llama/tokenizer.model --output=FOLDER --num_units=1000

FILE is UTF-8 text with one sentence per line. The defaults (the sentences of the demo world, 1,500
pieces, 200 units) are those of the shipped tokenizer, speechgpt_jax/assets/tokenizer. With --model
the tokens are added to a model that exists, and nothing is trained.
"""

from speechgpt_jax import arguments, files, prompts, unit_text
from speechgpt_jax.demo_world import tokenizer_text
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import SentencePieceTokenizer
from speechgpt_jax.tokenizer.training import train_sentencepiece

# Pieces of the shipped tokenizer.
NUM_PIECES = 1500
# More than any tokenizer has.
MOST_IDS = 1_000_000


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--text", type=arguments.existing_file, help="training text")
    parser.add_argument("--output", type=arguments.output_folder, required=True, help="new folder")
    parser.add_argument(
        "--model", type=arguments.existing_file, help="tokenizer.model, instead of training one"
    )
    parser.add_argument(
        "--vocab_size",
        type=arguments.at_least(300, at_most=MOST_IDS),
        help=f"pieces to be trained; default: {NUM_PIECES}",
    )
    parser.add_argument(
        "--num_units",
        type=arguments.at_least(1, at_most=MOST_IDS),
        default=200,
        help="number of units",
    )
    parser.add_argument(
        "--no_roles",
        action="store_true",
        help="add only units, <sosp> and <eosp>, as SpeechGPT's first stage has them",
    )
    args = parser.parse_args(argv)
    if args.model and (args.text or args.vocab_size):
        raise UserError("--text and --vocab_size train a model; leave them out with --model.")
    files.refuse_existing(args.output, "tokenizer.model", "added_tokens.json")
    tokens = prompts.added_tokens(args.num_units)
    if args.no_roles:
        tokens = [*tokens[: args.num_units], unit_text.START, unit_text.END]
    if args.model:
        tokenizer = SentencePieceTokenizer.from_files(args.model, tokens)
        tokenizer.save_pretrained(args.output)
        print(f"{args.output}: {tokenizer.vocab_size} ids.")
        return
    sentences = files.read_lines(args.text) if args.text else tokenizer_text.sentences()
    model = train_sentencepiece(sentences, args.vocab_size or NUM_PIECES)
    tokenizer = SentencePieceTokenizer.from_model(model, tokens)
    tokenizer.save_pretrained(args.output)
    words = sum(len(sentence.split()) for sentence in sentences)
    pieces = sum(len(tokenizer.encode(sentence)) for sentence in sentences)
    print(
        f"{args.output}: {tokenizer.vocab_size} ids, {pieces / words:.2f} pieces per word of"
        f" {len(sentences)} lines."
    )


if __name__ == "__main__":
    arguments.run(main)
