"""SentencePiece and added tokens in a TensorFlow graph."""

import functools
from collections.abc import Mapping

import tensorflow as tf
import tensorflow_text as tf_text

from speechgpt_jax.tokenizer import SentencePieceTokenizer, any_of

# The characters that str.strip() removes; RE2's \s matches only five of them.
_SPACES = (
    r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)

# A byte that no UTF-8 string contains.
_CUT = b"\xff"


class SentencePieceGraph:
    """The ids of `SentencePieceTokenizer.encode`, computed by TensorFlow ops."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        self._tokens = tokenizer.added_tokens
        self._ended = _ended(self._tokens)
        self._runs = _runs(self._tokens, self._ended)
        with tf.init_scope():
            self._pieces = tf_text.SentencepieceTokenizer(tokenizer.model, out_type=tf.int32)

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:  # [B] -> [B, (N)]
        if not self._tokens:
            return self._pieces.tokenize(texts)
        # Each row alternates: text, added tokens, text, added tokens, ...; the last part is "".
        texts = tf.strings.regex_replace(texts, self._runs, _CUT + rb"\0" + _CUT)
        parts = tf.strings.split(tf.strings.join([texts, _CUT]), _CUT)
        texts, runs = parts.flat_values[0::2], parts.flat_values[1::2]
        pieces = self._pieces.tokenize(_strip_beside(runs, texts))
        pairs = tf.concat([pieces, self._added_ids(runs)], axis=1)
        counts = parts.row_lengths() // 2
        return tf.RaggedTensor.from_row_lengths(pairs, counts, validate=False).merge_dims(1, 2)

    @functools.cached_property
    def _id_table(self) -> tf.lookup.StaticHashTable:
        """Added token, without the ">" at which it is split -> id; other strings -> -1."""
        keys = [token.removesuffix(">") if self._ended else token for token in self._tokens]
        ids = [*self._tokens.values()]
        with tf.init_scope():
            initial = tf.lookup.KeyValueTensorInitializer(keys, ids, tf.string, tf.int32)
            return tf.lookup.StaticHashTable(initial, -1)

    def _added_ids(self, runs: tf.Tensor) -> tf.RaggedTensor:
        # "<5><6>" -> "<5><6" -> "<5", "<6"; "" -> "", which is no token.
        if self._ended:
            tokens = tf.strings.split(tf.strings.regex_replace(runs, ">$", ""), ">")
        else:
            tokens = tf.strings.split(runs, _CUT)
        ids = self._id_table.lookup(tokens.flat_values)
        lengths = tokens.row_lengths() - tf.cast(runs == "", tf.int64)
        ids = tf.boolean_mask(ids, ids >= 0)
        return tf.RaggedTensor.from_row_lengths(ids, lengths, validate=False)


def _ended(tokens: Mapping[str, int]) -> set[str]:
    """The added tokens that end in ">", such as units, if a split at ">" separates them.

    A regular expression match per unit would dominate the cost of encoding; a split is cheap.
    """
    if any(">" in token[:-1] or token + ">" in tokens for token in ("", *tokens)):
        return set()
    return {token for token in tokens if token.endswith(">")}


def _runs(tokens: Mapping[str, int], ended: set[str]) -> str:
    """A pattern for a run of added tokens that end in ">", or for one other added token."""
    others = tokens.keys() - ended
    patterns = [f"(?:{any_of(ended)})+"] if ended else []
    return "|".join([*patterns, any_of(others)] if others else patterns)


def _strip_beside(runs: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
    """`texts` without the white space beside the added tokens before and after them.

    Text i precedes run i; the run after the last text of a row is "".
    """
    is_last = runs == ""
    is_first = tf.concat([[True], is_last[:-1]], axis=0)
    texts = tf.where(is_first, texts, tf.strings.regex_replace(texts, "^" + _SPACES, "", False))
    return tf.where(is_last, texts, tf.strings.regex_replace(texts, _SPACES + "$", "", False))
