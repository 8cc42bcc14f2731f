"""Interface of all tokenizers."""

import abc
import os
from collections.abc import Iterable, Sequence

from speechgpt_jax import prompts, shipped
from speechgpt_jax.errors import UserError


class Tokenizer(abc.ABC):
    """Text and unit text <-> token ids.

    Encodes without bos and eos, as SeqIO's vocabularies do:
    `"[Human]: hi <eoh>"` -> ids of `[Human]`, `▁:`, `▁hi`, `<eoh>`.

    Tokenizers can be pickled; two are equal if their files are.

    Attributes:
      added_tokens: token -> id of units, markers and others at which text is split.
      bos_id: id in front of every text that a model reads; None for models that read none, such as
        Qwen.
      eos_id: id at the end of every text that a model learns to write.
      stop_ids: ids that end an answer; `eos_id` is one of them.
      pad_id: padding in the configs of exported models: `<unk>` with SentencePiece, otherwise the
        padding token, or eos if there is none.
      unk_id: id of the unknown piece; None if every text has ids of its own.
      template: marks the turns of the dialogues that the model reads; saved with the tokenizer.
    """

    added_tokens: dict[str, int]
    bos_id: int | None
    eos_id: int
    stop_ids: tuple[int, ...]
    pad_id: int
    unk_id: int | None
    template: prompts.Template = prompts.SPEECHGPT_TEMPLATE

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, template: str | None = None) -> "Tokenizer":
        """Reads the tokenizer of a run or of a Hugging Face folder.

        A SentencePiece model (`tokenizer.model`) is preferred to `tokenizer.json`: the released
        SpeechGPT was trained with its ids.

        Args:
          folder: has its files.
          template: name of one of `prompts.TEMPLATES`, which replaces the one that is saved with
            the tokenizer; where neither is given it is SpeechGPT's.

        Raises:
          UserError: its files are missing or damaged, or the template is unknown or needs tokens
            that it lacks.
        """
        # Imported here because those modules import this one.
        from speechgpt_jax.tokenizer.hugging_face import HuggingFaceTokenizer
        from speechgpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer

        folder = shipped.find(folder)
        if (folder / "tokenizer.model").exists():
            tokenizer: Tokenizer = SentencePieceTokenizer.from_folder(folder)
        elif (folder / "tokenizer.json").exists():
            tokenizer = HuggingFaceTokenizer.from_folder(folder)
        else:
            raise UserError(
                f"{folder} has no tokenizer; expected a tokenizer.model or a tokenizer.json in it."
            )
        return tokenizer.with_template(template) if template else tokenizer

    @abc.abstractmethod
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the files that `from_pretrained` reads; makes the folder."""

    @abc.abstractmethod
    def with_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with more added tokens, whose ids follow the last one in their order.

        White space on both sides of them is dropped.

        Raises:
          UserError: it has one of them already.
        """

    @abc.abstractmethod
    def with_template(self, name: str) -> "Tokenizer":
        """This tokenizer with another template.

        Raises:
          UserError: the template is unknown, or needs tokens that this tokenizer lacks.
        """

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that a model reads: bos, if it has one, then those of `text`."""
        return ([] if self.bos_id is None else [self.bos_id]) + self.encode(text)

    def encode_dialogue(self, prefix: str, dialogue: str) -> list[int]:
        """Ids of a dialogue, or of its beginning, that a model reads in its template.

        Args:
          prefix: the system prompt.
          dialogue: text with SpeechGPT's marks, in one of the forms of `prompts`.
        """
        return self.encode_prompt(self.template.render(prefix, dialogue))

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without control tokens, except those that mark turns in the template.

        Raises:
          UserError: no token has one of these ids.
        """

    @abc.abstractmethod
    def token_to_id(self, token: str) -> int:
        """Id of an added token or of a piece; raises a UserError if it is neither."""

    @abc.abstractmethod
    def is_byte(self, id_: int) -> bool:
        """Whether the token is a single byte such as `<0x41>`, decoded with its neighbours."""

    @abc.abstractmethod
    def token_bytes(self, id_: int) -> bytes:
        """UTF-8 that a token writes between others, perhaps a part of a character; none if it is a
        control token."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """One more than the highest id; a checkpoint may have more rows than this."""

    @property
    def unit_ids(self) -> range:
        """Ids of `<0>`, `<1>`, ...; empty for a text-only tokenizer."""
        first = self.added_tokens.get("<0>", 0)
        num_units = 0
        while self.added_tokens.get(f"<{num_units}>") == first + num_units:
            num_units += 1
        return range(first, first + num_units)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]
