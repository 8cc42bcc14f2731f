"""Interface of all tokenizers."""

import abc
import os
from collections.abc import Iterable
from typing import ClassVar


class Tokenizer(abc.ABC):
    """Text and unit text <-> token ids.

    Encodes without bos and eos, as SeqIO's vocabularies do:
    `"[Human]: hi <eoh>"` -> ids of `[Human]`, `▁:`, `▁hi`, `<eoh>`.

    Attributes:
      added_tokens: token -> id of units, role tokens and others at which text is split.
      pad_id: fills the end of a batch's rows; never part of a text.
    """

    added_tokens: dict[str, int]
    pad_id: ClassVar[int] = 0

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Reads the tokenizer of a run or of a Hugging Face folder.

        Raises:
          UserError: its files are missing or damaged.
        """
        # Imported here because that module imports this one.
        from speechgpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer.from_folder(folder)

    @abc.abstractmethod
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the files that `from_pretrained` reads; makes the folder."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`; text such as "</s>" never becomes a control token."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, with spaces around added tokens and without control tokens.

        Raises:
          UserError: no token has one of these ids.
        """

    @abc.abstractmethod
    def token_to_id(self, token: str) -> int:
        """Id of an added token or of a piece; raises a UserError if it is neither."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """One more than the highest id; a checkpoint may have more rows than this."""

    @property
    @abc.abstractmethod
    def bos_id(self) -> int:
        """Id at the start of every text that a model reads."""

    @property
    @abc.abstractmethod
    def eos_id(self) -> int:
        """Id at the end of every text that a model writes."""

    @property
    @abc.abstractmethod
    def unk_id(self) -> int:
        """Id of the unknown piece; required by SeqIO."""

    @property
    def unit_ids(self) -> range:
        """Ids of `<0>`, `<1>`, ...; empty for a text-only tokenizer."""
        first = self.added_tokens.get("<0>", 0)
        num_units = 0
        while self.added_tokens.get(f"<{num_units}>") == first + num_units:
            num_units += 1
        return range(first, first + num_units)
