"""Prefix cache: keys and values of the beginnings of earlier prompts, which are not read again.

All dialogues of a server begin with the same system prompt, and each turn of a conversation with
the turns before it. Beginnings are kept in whole chunks, which the prompt alone decides: an answer
is the same with and without them (vLLM's automatic prefix caching keeps blocks by their hash).
"""

import collections
import threading

import jax
import numpy as np

from speechgpt_jax.decoding.slots import Chunk


class Prefixes:
    """The kept chunks of all workers of an engine, by all tokens up to their end.

    Attributes:
      most_bytes: most bytes of keys and values, on all devices together; 0: nothing is kept.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes, self._bytes = most_bytes, 0
        self._chunks: collections.OrderedDict[bytes, Chunk] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, tokens: np.ndarray) -> Chunk | None:
        """The last chunk of `tokens`, int32 [N], or None if it is not kept."""
        with self._lock:
            chunk = self._chunks.get(key := tokens.tobytes())
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, tokens: np.ndarray, chunk: Chunk) -> None:
        """Keeps the last chunk of `tokens`, int32 [N]."""
        with self._lock:
            if (key := tokens.tobytes()) not in self._chunks:
                self._bytes += _size(chunk)
            self._chunks[key] = chunk
            self._chunks.move_to_end(key)
            while self._bytes > self.most_bytes:
                _, dropped = self._chunks.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(chunk: Chunk) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(chunk))
