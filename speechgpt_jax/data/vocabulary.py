"""The tokenizer as a SeqIO vocabulary: the same ids from a TensorFlow graph."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from speechgpt_jax.tokenizer import Tokenizer, any_of

# What str.strip() takes for white space; RE2's \s has six of these.
_SPACES = (
    r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)

# A byte that no UTF-8 string has.
_CUT = b"\xff"


class Vocabulary(seqio.Vocabulary):
    """`encode_tf(text)` gives the ids of `Tokenizer.encode(text)`, for every UTF-8 string.

    Both leave out bos and eos, as SeqIO expects. `encode_tf` takes one string (ids [N]) or a
    batch of them (ragged ids [B, N]).
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @classmethod
    def from_files(cls, model_file: str | Path, added_tokens: Sequence[str]) -> "Vocabulary":
        return cls(Tokenizer.from_files(model_file, added_tokens))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Vocabulary":
        return cls(Tokenizer.from_pretrained(folder))

    @property
    def bos_id(self) -> int:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int:
        return self.tokenizer.unk_id

    @property
    def unit_ids(self) -> range:
        return self.tokenizer.unit_ids

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    @tf.autograph.experimental.do_not_convert
    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        s = tf.convert_to_tensor(s)
        if s.shape.rank == 0:
            return self._encode_batch(s[tf.newaxis]).flat_values
        return self._encode_batch(s)

    def _encode_batch(self, texts: tf.Tensor) -> tf.RaggedTensor:  # [B] -> [B, (N)]
        if not self.tokenizer.added_tokens:
            return self._sentencepiece.tokenize(texts)
        # Now text, added token, text, added token, text in every row.
        texts = tf.strings.regex_replace(texts, self._pattern, _CUT + rb"\0" + _CUT)
        parts = tf.strings.split(texts, _CUT)
        rows = self._added_rows.lookup(parts.flat_values)  # [P], -1 for text
        text = tf.where(rows < 0)
        pieces = self._sentencepiece.tokenize(_strip_beside_added_tokens(parts, text[:, 0]))
        ids = tf.concat([self._added_ids, pieces], axis=0)
        numbers = self._added_ids.nrows(tf.int32) + tf.range(pieces.nrows(tf.int32))
        rows = tf.tensor_scatter_nd_update(rows, text, numbers)
        return parts.with_flat_values(tf.gather(ids, rows)).merge_dims(1, 2)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:  # [N] -> [], [B, N] -> [B]
        # In Python: nothing decodes on the way to the model.
        def decode(ids):
            flat = ids.reshape(-1, ids.shape[-1])
            texts = [self.tokenizer.decode(row).encode() for row in flat.tolist()]
            return np.array(texts, object).reshape(ids.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        return tf.ensure_shape(texts, ids.shape[:-1])

    @functools.cached_property
    def _pattern(self) -> str:
        return any_of(self.tokenizer.added_tokens)

    @functools.cached_property
    def _added_rows(self) -> tf.lookup.StaticHashTable:
        """Added token -> its row of `_added_ids`; "" is an empty row."""
        tokens = [*self.tokenizer.added_tokens, ""]
        with tf.init_scope():
            table = tf.lookup.KeyValueTensorInitializer(
                tokens, list(range(len(tokens))), tf.string, tf.int32
            )
            return tf.lookup.StaticHashTable(table, -1)

    @property
    def _added_ids(self) -> tf.RaggedTensor:
        return tf.ragged.constant(
            [*([id_] for id_ in self.tokenizer.added_tokens.values()), []], tf.int32
        )

    @functools.cached_property
    def _sentencepiece(self) -> tf_text.SentencepieceTokenizer:
        with tf.init_scope():
            return tf_text.SentencepieceTokenizer(self.tokenizer.model, out_type=tf.int32)

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, Vocabulary)
            and self.tokenizer.model == other.tokenizer.model
            and self.tokenizer.added_tokens == other.tokenizer.added_tokens
        )

    def __reduce__(self):
        tokenizer = self.tokenizer
        return _from_parts, (tokenizer.model, tokenizer.added_tokens)


def _from_parts(model: bytes, added_tokens: dict[str, int]) -> Vocabulary:
    return Vocabulary(Tokenizer(model, added_tokens))


def _strip_beside_added_tokens(parts: tf.RaggedTensor, text: tf.Tensor) -> tf.Tensor:
    """The text parts, without the white space that touches an added token.

    Two parts of text never meet, so what comes before a text part that isn't first in its row is
    an added token, and so is what comes after one that isn't last.
    """
    row = tf.gather(parts.value_rowids(), text)
    is_first = text == tf.gather(parts.row_starts(), row)
    is_last = text == tf.gather(parts.row_limits(), row) - 1
    texts = tf.gather(parts.flat_values, text)
    texts = tf.where(is_first, texts, tf.strings.regex_replace(texts, "^" + _SPACES, "", False))
    return tf.where(is_last, texts, tf.strings.regex_replace(texts, _SPACES + "$", "", False))
