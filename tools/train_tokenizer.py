"""Trains a SentencePiece model with LLaMA's settings and adds units and role tokens to it.

    python -m tools.train_tokenizer --text=FILE --output=FOLDER --vocab_size=32000 --num_units=1000

`FILE` has one sentence a line. Without `--text` the texts are those of the demo world, and the
defaults make the tokenizer that is shipped in speechgpt_jax/assets/tokenizer.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from absl import app, flags

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer, any_of

_TEXT = flags.DEFINE_string("text", None, "Text to learn from, one sentence a line.")
_OUTPUT = flags.DEFINE_string("output", str(DEMO_TOKENIZER), "Folder to write.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 1500, "SentencePiece pieces.", lower_bound=300)
_NUM_UNITS = flags.DEFINE_integer("num_units", 200, "Speech units.", lower_bound=1)


def train_sentencepiece(sentences: Iterable[str], vocab_size: int) -> bytes:
    """A serialised BPE model: byte fallback, digits apart, no normalisation, as LLaMA's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=0.99995,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=2,
        minloglevel=1,
    )
    return model.getvalue()


def demo_sentences() -> list[str]:
    """The training texts of the demo world, and every template around every description.

    The templates come in the pieces that the tokenizer will cut them into at its added tokens.
    """
    templates = [
        prompts.CROSS_MODAL.format(description=description, source="<sosp>", target="<sosp>")
        for description in descriptions.ASR + descriptions.TTS
    ] + [prompts.SPEECH_TO_SPEECH, prompts.SPEECH_TO_TEXT, prompts.TEXT_TO_SPEECH]
    cut = re.compile(any_of(prompts.ROLE_TOKENS) + r"|\{\w+\}").split
    pieces = [piece.strip() for template in templates for piece in cut(template)]
    pieces.append(prompts.DEFAULT_PREFIX.strip())
    world = [sentence.text for sentence in demo_world.all_sentences() if sentence.split == "train"]
    # Often enough that the words of the templates become single pieces.
    return world + 20 * [piece for piece in pieces if piece]


def main(_) -> None:
    if _TEXT.value:
        sentences = Path(_TEXT.value).read_text(encoding="utf-8").splitlines()
    else:
        sentences = demo_sentences()
    model = train_sentencepiece(sentences, _VOCAB_SIZE.value)
    first = _VOCAB_SIZE.value
    added = [f"<{unit}>" for unit in range(_NUM_UNITS.value)] + list(prompts.ROLE_TOKENS)
    tokenizer = Tokenizer(model, {token: first + i for i, token in enumerate(added)})
    tokenizer.save_pretrained(_OUTPUT.value)
    words = sum(len(sentence.split()) for sentence in sentences)
    pieces = sum(len(tokenizer.encode(sentence)) for sentence in sentences)
    print(f"{_OUTPUT.value}: {tokenizer.vocab_size} ids, {pieces / words:.2f} pieces a word.")


if __name__ == "__main__":
    app.run(main)
