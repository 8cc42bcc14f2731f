"""Trains a SentencePiece model with LLaMA's settings."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from speechgpt_jax.errors import UserError

# The trainer skips lines with one of these characters.
_RESERVED = re.compile("[\0\u2585]")
# The trainer ends the process at a word, between spaces, of more than 2^16 characters.
_LONGEST_WORD = 65_000
# Part of the trainer's message that names the limit of the vocabulary's size.
_SIZE = re.compile(r"Vocabulary size.* (?:<= (?P<most>\d+)|\d+ vs (?P<least>\d+))\.")


def train_sentencepiece(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Trains a BPE model with LLaMA's byte fallback, single digits and no normalisation.

    Sentences of any length are used, if their words have at most 65,000 characters.

    Args:
      sentences: texts without line breaks; blank ones are left out.
      vocab_size: number of pieces, among them 256 bytes and 3 control tokens.

    Returns:
      The serialised model.

    Raises:
      UserError: there is no text, too much or too little of it for `vocab_size`, or a word is too
        long.
    """
    pieces = [piece for sentence in sentences for piece in _trainable(sentence)]
    if not pieces:
        raise UserError("there is no text to train a tokenizer on; give a file with sentences.")
    for piece in pieces:
        if len(word := max(piece.split(" "), key=len)) > _LONGEST_WORD:
            raise UserError(
                f"a word of the text has {len(word)} characters ({word[:20]!r}...); expected at "
                f"most {_LONGEST_WORD} between spaces; break it into lines."
            )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.99995,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            # The default drops lines of more than 4,192 bytes; the minimum is 10.
            max_sentence_length=max(10, *(len(piece.encode()) for piece in pieces)),
            num_threads=2,
            minloglevel=2,  # Errors only: the exception says what the warnings say.
        )
    except RuntimeError as error:
        if problem := _SIZE.search(str(error)):
            bound = (
                f"at most {problem['most']}" if problem["most"] else f"at least {problem['least']}"
            )
            raise UserError(
                f"vocab_size {vocab_size} does not suit this text, which needs one of {bound}."
            ) from error
        raise
    return model.getvalue()


def _trainable(sentence: str) -> Iterator[str]:
    return (piece for piece in _RESERVED.split(sentence) if piece.strip())
