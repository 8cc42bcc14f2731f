"""Tokens of a text that arrive one by one, with the bytes that each has written."""

import collections
from collections.abc import Iterable
from typing import NamedTuple

from speechgpt_jax.decoding.requests import Token
from speechgpt_jax.tokenizer import TextStream, Tokenizer

_REPLACEMENT = "\ufffd"


class TextToken(NamedTuple):
    """A token of a text.

    Attributes:
      bytes: what it has written in UTF-8, perhaps a part of a character.
      logprob: natural logarithm of the model's probability for it, as in `Token`.
    """

    bytes: bytes
    logprob: float


class _Group(NamedTuple):
    """Tokens that wrote a text together: one, or several that share a character."""

    start: int
    text: str
    tokens: list[TextToken]


class TextTokens:
    """Decodes tokens as they arrive, and hands them out with the text that they have written.

    Attributes:
      text: the text that is complete so far.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._stream = tokenizer, TextStream(tokenizer)
        self._begun: list[Token] = []  # Their text is not complete.
        self._groups: collections.deque[_Group] = collections.deque()  # Not taken yet.
        self.text = ""

    def write(self, token: Token) -> None:
        """Adds a token."""
        self._begun.append(token)
        if text := self._stream.write(token.id):
            self._add(text)

    def finish(self) -> None:
        """Adds what the last tokens have begun."""
        self._add(self._stream.finish())

    def _add(self, text: str) -> None:
        self._groups.append(_Group(len(self.text), text, self._with_bytes(text)))
        self.text += text
        self._begun = []

    def _with_bytes(self, text: str) -> list[TextToken]:
        if len(self._begun) == 1 and _REPLACEMENT not in text:
            return [TextToken(text.encode(), self._begun[0].logprob)]
        of = self._tokenizer.token_bytes
        tokens = [TextToken(of(token.id), token.logprob) for token in self._begun]
        whole, written = b"".join(token.bytes for token in tokens), text.encode()
        # A space that begins a text is left out.
        is_cut = written and whole.endswith(written)
        return cut(tokens, len(whole) - len(written), len(whole)) if is_cut else tokens

    def take(self, start: int, end: int, *, is_last: bool = False) -> list[TextToken]:
        """Tokens within `text[start:end]` that were not taken yet; those before it are dropped.

        A token that ends after `end` waits for the next call, or is cut if this `is_last`.
        """
        taken: list[TextToken] = []
        while self._groups:
            first, text, tokens = self._groups[0]
            last = first + len(text)
            if last > end and not (is_last and first < end):
                break
            self._groups.popleft()
            if last <= start:
                continue
            if first < start or last > end:
                before, within = text[: max(0, start - first)], text[: end - first]
                tokens = cut(tokens, len(before.encode()), len(within.encode()))
            taken += tokens
        return taken


def cut(tokens: Iterable[TextToken], start: int, end: int) -> list[TextToken]:
    """The bytes start..end of tokens; those of which nothing is left are dropped."""
    kept, place = [], 0
    for token in tokens:
        part = token.bytes[max(0, start - place) : max(0, end - place)]
        place += len(token.bytes)
        if part:
            kept.append(token._replace(bytes=part))
    return kept
