"""A SentencePiece model of the LLaMA family plus added tokens (units and markers).

The ids are those with which the released SpeechGPT checkpoints were trained (transformers 4.33.1,
slow tokenizer):

* text is split at the added tokens, and white space on both sides of an added token is dropped;
* each part of the text is encoded separately, so each gets its own leading `▁`;
* `<s>`, `</s>` and `<unk>` in the text are ordinary characters, never control tokens.

Later versions of transformers have other ids for the same string.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece
from etils import epath

from speechgpt_jax import files, prompts, shipped
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields
from speechgpt_jax.tokenizer.interface import Tokenizer
from speechgpt_jax.tokenizer.patterns import any_of

DEMO_TOKENIZER = shipped.ASSETS / "tokenizer"

_SPACE = "▁"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model plus added tokens; the module's docstring has the rules."""

    def __init__(self, model: bytes, added_tokens: Mapping[str, int]):
        """
        Args:
          model: a serialised SentencePiece model.
          added_tokens: token -> id; it may be the id of a piece only if the token is that piece.

        Raises:
          UserError: two tokens have the same id, one has the id of another piece, no token has an
            id between others, or the model has no eos.
        """
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.added_tokens = {t: i for t, i in added_tokens.items() if not self._is_control(t, i)}
        self._strings = {id_: token for token, id_ in self.added_tokens.items()}
        self._check_ids()
        self.bos_id = _existing(self._pieces.bos_id())
        eos_id = _existing(self._pieces.eos_id())
        if eos_id is None:
            raise UserError("the SentencePiece model has no eos, such as </s>; take another one.")
        self.eos_id = eos_id
        self.stop_ids = (self.eos_id,)
        self.pad_id = 0
        self.unk_id = self._pieces.unk_id()
        self._split = re.compile(f"({any_of(self.added_tokens)})").split

    @classmethod
    def from_files(
        cls, model_file: str | os.PathLike, added_tokens: Sequence[str]
    ) -> "SentencePieceTokenizer":
        """A tokenizer from a SentencePiece file and tokens with the ids after its pieces."""
        return cls.from_model(_read_model(model_file), added_tokens)

    @classmethod
    def from_model(cls, model: bytes, added_tokens: Sequence[str]) -> "SentencePieceTokenizer":
        """A tokenizer from a serialised model and tokens with the ids after its pieces."""
        first = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
        return cls(model, {token: first + i for i, token in enumerate(added_tokens)})

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads `tokenizer.model` and, if they exist, the added tokens of `added_tokens.json` and
        `tokenizer_config.json`.

        Raises:
          UserError: a file is missing or damaged.
        """
        folder = shipped.find(folder)
        model = _read_model(folder / "tokenizer.model")
        return cls(model, read_added_tokens(folder))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `added_tokens.json`, then `tokenizer.model`, which completes the folder."""
        folder = epath.Path(folder)
        files.write_text(folder / "added_tokens.json", json.dumps(self.added_tokens) + "\n")
        files.write_bytes(folder / "tokenizer.model", self.model)

    def with_tokens(self, tokens: Sequence[str]) -> "SentencePieceTokenizer":
        if known := [token for token in tokens if token in self.added_tokens]:
            raise UserError(f"the tokenizer has a token {known[0]!r} already.")
        new = {token: self.vocab_size + i for i, token in enumerate(tokens)}
        return SentencePieceTokenizer(self.model, self.added_tokens | new)

    def with_template(self, name: str) -> "SentencePieceTokenizer":
        if prompts.template(name) is not self.template:
            raise UserError(
                f"template {name!r} is for a tokenizer.json; a SentencePiece model has only"
                f" {self.template.name!r}."
            )
        return self

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; text such as "</s>" never becomes a control token."""
        if not self.added_tokens:
            return self._pieces.encode(text)
        # Splitting on a group alternates: text, added token, text, added token, text.
        parts = self._split(text)
        ids = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self.added_tokens[part])
            elif part:
                part = part.lstrip() if i > 0 else part
                part = part.rstrip() if i < len(parts) - 1 else part
                ids += self._pieces.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, with spaces around added tokens and without control tokens.

        Raises:
          UserError: no token has one of these ids.
        """
        texts, pieces = [], []
        for id_ in map(int, ids):
            self._check_id(id_)
            if id_ in self._strings:
                texts += [self._join(pieces), self._strings[id_]]
                pieces = []
            elif not (self._pieces.is_control(id_) or self._pieces.is_unknown(id_)):
                pieces.append(self._pieces.id_to_piece(id_))
        texts.append(self._join(pieces))
        return " ".join(text for text in texts if text is not None)

    def token_to_id(self, token: str) -> int:
        if token in self.added_tokens:
            return self.added_tokens[token]
        id_ = self._pieces.piece_to_id(token)
        if id_ == self.unk_id:
            raise UserError(f"{token!r} is neither an added token nor a piece of this tokenizer.")
        return id_

    @property
    def vocab_size(self) -> int:
        return max([self._pieces.vocab_size() - 1, *self._strings]) + 1

    def is_byte(self, id_: int) -> bool:
        return id_ < self._pieces.vocab_size() and self._pieces.is_byte(id_)

    def token_bytes(self, id_: int) -> bytes:
        self._check_id(id_)
        if id_ in self._strings:
            return self._strings[id_].encode()
        if self._pieces.is_control(id_) or self._pieces.is_unknown(id_):
            return b""
        piece = self._pieces.id_to_piece(id_)
        if self._pieces.is_byte(id_):  # <0x41>
            return bytes.fromhex(piece[3:5])
        return piece.replace(_SPACE, " ").encode()

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model, self.added_tokens)

    def _join(self, pieces: list[str]) -> str | None:
        if not pieces:
            return None
        # Drops the leading `▁` of this part of the text; SentencePiece removes another space if the
        # first piece was `▁` itself.
        return self._pieces.decode([pieces[0].removeprefix(_SPACE), *pieces[1:]])

    def _is_control(self, token: str, id_: int) -> bool:
        """`token` is `<unk>`, `<s>` or another control token of the model, with its own id."""
        if not self._is_piece(token, id_):
            return False
        return self._pieces.is_control(id_) or self._pieces.is_unknown(id_)

    def _is_piece(self, token: str, id_: int) -> bool:
        return 0 <= id_ < self._pieces.vocab_size() and self._pieces.id_to_piece(id_) == token

    def _check_ids(self) -> None:
        for token, id_ in self.added_tokens.items():
            if id_ < self._pieces.vocab_size() and not self._is_piece(token, id_):
                raise UserError(
                    f"Added token {token!r} has id {id_}, which is another piece of the"
                    f" SentencePiece model (0 to {self._pieces.vocab_size() - 1}): take both files"
                    " from the same checkpoint."
                )
        if len(self._strings) < len(self.added_tokens):
            raise UserError("Two added tokens have the same id; give each an id of its own.")
        first = self._pieces.vocab_size()
        for next_id, id_ in enumerate(sorted(i for i in self._strings if i >= first), first):
            if id_ > next_id:
                raise UserError(
                    f"No token has id {next_id}: the SentencePiece model has the ids below {first},"
                    f" and {self._strings[id_]!r} is {id_}: take both files from the same"
                    " checkpoint."
                )

    def _check_id(self, id_: int) -> None:
        if not (0 <= id_ < self._pieces.vocab_size() or id_ in self._strings):
            raise UserError(f"No token has id {id_}; this tokenizer has {self.vocab_size} ids.")


def _existing(id_: int) -> int | None:
    """An id, or None for that of a token that the model lacks: SentencePiece's is -1."""
    return None if id_ < 0 else id_


def _read_model(path: str | os.PathLike) -> bytes:
    model = files.read_bytes(path, "a SentencePiece model")
    try:
        # An empty model is not loaded, and asking for its size prints two lines.
        pieces = model and sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    except RuntimeError:
        pieces = 0
    if not pieces:
        raise UserError(f"{path} is not a SentencePiece model; get it again.")
    return model


def read_added_tokens(folder: epath.Path) -> dict[str, int]:
    """Added tokens of `added_tokens.json` and of `tokenizer_config.json`: token -> id."""
    added_tokens = _read_json(folder / "added_tokens.json")
    if not all(type(id_) is int and id_ >= 0 for id_ in added_tokens.values()):
        raise UserError(f"{folder}/added_tokens.json must give each token a whole number.")
    path = folder / "tokenizer_config.json"
    config = Fields(_read_json(path), str(path))
    for id_, entry in config.get("added_tokens_decoder", Mapping[str, Mapping], {}).items():
        if not re.fullmatch(r"\d{1,9}", id_, re.ASCII):
            raise UserError(f"{path} has {id_!r} in added_tokens_decoder; expected a token's id.")
        token = Fields(entry, f"{path}: token {id_}").require("content", str)
        added_tokens.setdefault(token, int(id_))
    return added_tokens


def _read_json(path: epath.Path) -> dict:
    return files.read_json(path, "a JSON object of tokens") if path.exists() else {}
