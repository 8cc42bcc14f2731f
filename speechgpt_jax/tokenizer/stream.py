"""Text of tokens that arrive one by one."""

from speechgpt_jax.tokenizer.interface import Tokenizer

_REPLACEMENT = "\ufffd"


class TextStream:
    """Decodes tokens as they arrive; the pieces joined are the text of all tokens.

        stream = TextStream(tokenizer)
        for id_ in ids:
            print(stream.write(id_), end="")
        print(stream.finish())

    A piece is held back until its characters are complete.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # The text of a token depends on its neighbours, so a few tokens are decoded again each
        # time: those of `_context`, whose text is written, and those of `_new`, whose text is not.
        self._context: list[int] = []
        self._new: list[int] = []

    def write(self, id_: int) -> str:
        """The text that is complete with this token; often empty.

        Raises:
          UserError: no token has this id.
        """
        self._new.append(id_)
        text = self._unwritten()
        # Bytes decode together with those that follow them.
        if not text or text.endswith(_REPLACEMENT) or self._tokenizer.is_byte(id_):
            return ""
        return self._written(text)

    def finish(self) -> str:
        """The rest of the text, where bytes without an end are replacement characters."""
        return self._written(self._unwritten())

    def _unwritten(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._context + self._new)[len(decode(self._context)) :]

    def _written(self, text: str) -> str:
        # White space at the start of a text is decoded differently, so it is no context alone.
        is_context = bool(self._tokenizer.decode(self._new).strip())
        self._context = self._new if is_context else self._context + self._new
        self._new = []
        return text
