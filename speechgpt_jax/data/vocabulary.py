"""The tokenizer as a SeqIO vocabulary, with the same ids in TensorFlow graphs."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data.sentencepiece_graph import SentencePieceGraph
from speechgpt_jax.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer


class Vocabulary(seqio.Vocabulary):
    """SeqIO vocabulary whose `encode_tf` returns the ids of `Tokenizer.encode`.

    Both leave out bos and eos, as SeqIO expects. `encode_tf` takes a UTF-8 string (returns ids [N])
    or a batch of strings (returns ragged ids [B, (N)]). SentencePiece runs as TensorFlow ops; a
    tokenizer.json runs in the `tokenizers` library, which encodes a batch on all cores.

    A vocabulary can be pickled, for caching in other processes.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path, template: str | None = None) -> "Vocabulary":
        return cls(Tokenizer.from_pretrained(folder, template))

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.tokenizer.unk_id

    @property
    def unit_ids(self) -> range:
        return self.tokenizer.unit_ids

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first eos; all of it if eos ends every turn in the template."""
        if self.tokenizer.template.special_tokens:
            return self._decode(ids)
        return super().decode(ids)

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

    @functools.cached_property
    def _encode_batch(self) -> Callable[[tf.Tensor], tf.RaggedTensor]:  # [B] -> [B, (N)]
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            # Traced once, not in every dataset; its parts have no names for autograph to convert.
            texts = tf.TensorSpec([None], tf.string)
            return tf.function(SentencePieceGraph(self.tokenizer), [texts], autograph=False)
        assert isinstance(self.tokenizer, HuggingFaceTokenizer)
        return functools.partial(_encode_in_python, self.tokenizer)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:  # [N] -> [], [B, N] -> [B]
        # In Python, because decoding is not part of the input pipeline.
        def decode(ids):
            flat = ids.reshape(-1, ids.shape[-1])
            texts = [self.tokenizer.decode(row).encode() for row in flat.tolist()]
            return np.array(texts, object).reshape(ids.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        return tf.ensure_shape(texts, ids.shape[:-1])

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.tokenizer == other.tokenizer

    def __reduce__(self):
        return Vocabulary, (self.tokenizer,)


def _encode_in_python(tokenizer: HuggingFaceTokenizer, texts: tf.Tensor) -> tf.RaggedTensor:
    def encode(texts):
        rows = tokenizer.encode_batch([text.decode(errors="replace") for text in texts])
        ids = np.fromiter((id_ for row in rows for id_ in row), np.int32)
        return ids, np.array([len(row) for row in rows], np.int64)

    # Stateless, so that the position of a dataset can be saved.
    ids, lengths = tf.numpy_function(encode, [texts], [tf.int32, tf.int64], stateful=False)
    ids, lengths = tf.ensure_shape(ids, [None]), tf.ensure_shape(lengths, texts.shape)
    return tf.RaggedTensor.from_row_lengths(ids, lengths, validate=False)
