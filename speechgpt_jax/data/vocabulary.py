"""The tokenizer as a SeqIO vocabulary, with the same ids in TensorFlow graphs."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import seqio
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


class Vocabulary(seqio.Vocabulary):
    """SeqIO vocabulary whose `encode_tf` returns the ids of `Tokenizer.encode`.

    Both leave out bos and eos, as SeqIO expects. `encode_tf` takes a UTF-8 string (returns ids [N])
    or a batch of strings (returns ragged ids [B, (N)]).
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @classmethod
    def from_files(cls, model_file: str | Path, added_tokens: Sequence[str]) -> "Vocabulary":
        return cls(SentencePieceTokenizer.from_files(model_file, added_tokens))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Vocabulary":
        return cls(SentencePieceTokenizer.from_folder(folder))

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
        # Each row alternates: text, added tokens, text, added tokens, ...; the last part is "".
        texts = tf.strings.regex_replace(texts, self._runs, _CUT + rb"\0" + _CUT)
        parts = tf.strings.split(tf.strings.join([texts, _CUT]), _CUT)
        texts, runs = parts.flat_values[0::2], parts.flat_values[1::2]
        pieces = self._sentencepiece.tokenize(_strip_beside(runs, texts))
        pairs = tf.concat([pieces, self._added_ids(runs)], axis=1)
        counts = parts.row_lengths() // 2
        return tf.RaggedTensor.from_row_lengths(pairs, counts, validate=False).merge_dims(1, 2)

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

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:  # [N] -> [], [B, N] -> [B]
        # In Python, because decoding is not part of the input pipeline.
        def decode(ids):
            flat = ids.reshape(-1, ids.shape[-1])
            texts = [self.tokenizer.decode(row).encode() for row in flat.tolist()]
            return np.array(texts, object).reshape(ids.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        return tf.ensure_shape(texts, ids.shape[:-1])

    @functools.cached_property
    def _ended(self) -> set[str]:
        """The added tokens that end in ">", such as units, if a split at ">" separates them.

        A regular expression match per unit would dominate the cost of encoding; a split is cheap.
        """
        tokens = self.tokenizer.added_tokens
        if any(">" in token[:-1] or token + ">" in tokens for token in ("", *tokens)):
            return set()
        return {token for token in tokens if token.endswith(">")}

    @functools.cached_property
    def _runs(self) -> str:
        """A pattern for a run of added tokens that end in ">", or for one other added token."""
        others = self.tokenizer.added_tokens.keys() - self._ended
        patterns = [f"(?:{any_of(self._ended)})+"] if self._ended else []
        return "|".join([*patterns, any_of(others)] if others else patterns)

    @functools.cached_property
    def _id_table(self) -> tf.lookup.StaticHashTable:
        """Added token, without the ">" at which it is split -> id; other strings -> -1."""
        tokens = self.tokenizer.added_tokens
        keys = [token.removesuffix(">") if self._ended else token for token in tokens]
        with tf.init_scope():
            table = tf.lookup.KeyValueTensorInitializer(
                keys, list(tokens.values()), tf.string, tf.int32
            )
            return tf.lookup.StaticHashTable(table, -1)

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
    return Vocabulary(SentencePieceTokenizer(model, added_tokens))


def _strip_beside(runs: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
    """`texts` without the white space beside the added tokens before and after them.

    Text i precedes run i; the run after the last text of a row is "".
    """
    is_last = runs == ""
    is_first = tf.concat([[True], is_last[:-1]], axis=0)
    texts = tf.where(is_first, texts, tf.strings.regex_replace(texts, "^" + _SPACES, "", False))
    return tf.where(is_last, texts, tf.strings.regex_replace(texts, _SPACES + "$", "", False))
