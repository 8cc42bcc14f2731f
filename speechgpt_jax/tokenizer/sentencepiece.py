"""Text and unit text <-> token ids, in plain Python.

A SentencePiece model of the LLaMA family plus added tokens (units and role tokens). The ids are
those the released SpeechGPT checkpoints were trained on (transformers 4.33.1, slow tokenizer):

* text is cut at the added tokens, and white space on both sides of an added token is dropped;
* each piece of text left is encoded on its own, so each gets its own leading `▁`;
* `<s>`, `</s>` and `<unk>` in the text are ordinary characters: data never becomes a control token.

Later versions of transformers give other ids for the same string.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import ASSETS, find

DEMO_TOKENIZER = ASSETS / "tokenizer"

_SPACE = "▁"


class Tokenizer:
    """Encodes without bos and eos, as SeqIO's vocabularies do.

    `"[Human]: hi <eoh>"` -> ids of `[Human]`, `▁:`, `▁hi`, `<eoh>`.
    """

    pad_id = 0

    def __init__(self, model: bytes, added_tokens: Mapping[str, int]):
        """
        Args:
          model: a serialised SentencePiece model.
          added_tokens: token -> id; ids may not collide with the model's pieces.
        """
        self.model = model
        self.added_tokens = dict(added_tokens)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._strings = {id_: token for token, id_ in self.added_tokens.items()}
        self._check_ids()
        self._split = re.compile(f"({any_of(self.added_tokens)})").split

    @classmethod
    def from_files(cls, model_file: str | Path, added_tokens: Sequence[str]) -> "Tokenizer":
        """A SentencePiece file, and tokens that take the ids after its pieces."""
        model = _read_model(Path(model_file))
        first = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
        return cls(model, {token: first + i for i, token in enumerate(added_tokens)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """A Hugging Face folder: `tokenizer.model` and, where they are, the added tokens of
        `added_tokens.json` and of `tokenizer_config.json`."""
        folder = Path(find(folder))
        model = _read_model(folder / "tokenizer.model")
        return cls(model, _read_added_tokens(folder))

    def encode(self, text: str) -> list[int]:
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
        """Text of `ids`; added tokens stand apart by spaces, control tokens are left out."""
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
        """The id of an added token, or of a SentencePiece piece."""
        if token in self.added_tokens:
            return self.added_tokens[token]
        id_ = self._pieces.piece_to_id(token)
        if id_ == self._pieces.unk_id():
            raise UserError(f"{token!r} is neither an added token nor a piece of this tokenizer.")
        return id_

    def id_to_token(self, id_: int) -> str:
        self._check_id(id_)
        return self._strings.get(id_) or self._pieces.id_to_piece(id_)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a checkpoint may have more rows than this."""
        return max([self._pieces.vocab_size() - 1, *self._strings]) + 1

    @property
    def num_pieces(self) -> int:
        """The number of SentencePiece pieces: ids below it are text."""
        return self._pieces.vocab_size()

    @property
    def bos_id(self) -> int:
        return self._pieces.bos_id()

    @property
    def eos_id(self) -> int:
        return self._pieces.eos_id()

    @property
    def unk_id(self) -> int:
        return self._pieces.unk_id()

    @property
    def unit_ids(self) -> range:
        """The ids of `<0>`, `<1>`, ...; empty for a text-only tokenizer."""
        first = self.added_tokens.get("<0>", 0)
        num_units = 0
        while self.added_tokens.get(f"<{num_units}>") == first + num_units:
            num_units += 1
        return range(first, first + num_units)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `tokenizer.model` and `added_tokens.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)
        (folder / "added_tokens.json").write_text(json.dumps(self.added_tokens) + "\n")

    def _join(self, pieces: list[str]) -> str | None:
        if not pieces:
            return None
        # The dummy prefix of this stretch of text goes; SentencePiece then takes one more space
        # where the first piece was nothing else.
        return self._pieces.decode([pieces[0].removeprefix(_SPACE), *pieces[1:]])

    def _check_ids(self) -> None:
        for token, id_ in self.added_tokens.items():
            if id_ < self._pieces.vocab_size():
                raise UserError(
                    f"Added token {token!r} has id {id_}, which is a piece of the SentencePiece "
                    f"model (0 to {self._pieces.vocab_size() - 1}); the two files don't belong "
                    "together."
                )
        if len(self._strings) < len(self.added_tokens):
            raise UserError("Two added tokens have the same id.")

    def _check_id(self, id_: int) -> None:
        if not (0 <= id_ < self._pieces.vocab_size() or id_ in self._strings):
            raise UserError(f"No token has id {id_}; this tokenizer has {self.vocab_size} ids.")


def any_of(tokens: Iterable[str]) -> str:
    """A short pattern for the longest of `tokens` that matches.

    `["<1>", "<2>", "<21>"]` -> `<(?:1>|2(?:>|1>))`, and characters that go on alike share a class:
    a thousand units take some fifty characters, where `<0>|<1>|...` would be tried one by one.
    """
    rests: dict[str, list[str]] = {}
    for token in tokens:
        if token:
            rests.setdefault(token[0], []).append(token[1:])
    if not rests:
        return ""
    firsts: dict[str, list[str]] = {}
    for first, rest in rests.items():
        firsts.setdefault(any_of(rest), []).append(re.escape(first))
    branches = [
        (f"[{''.join(first)}]" if len(first) > 1 else first[0]) + rest
        for rest, first in firsts.items()
    ]
    if len(branches) == 1 and "" not in tokens:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if "" in tokens else "")


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"No SentencePiece model at {path}.")
    model = path.read_bytes()
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    except RuntimeError:
        pieces = 0
    if not pieces:
        raise UserError(f"{path} is not a SentencePiece model.")
    return model


def _read_added_tokens(folder: Path) -> dict[str, int]:
    """Added tokens of both files; those with the id of a piece (`<s>` is 1) are no added tokens."""
    added_tokens = _read_json(folder / "added_tokens.json")
    config = _read_json(folder / "tokenizer_config.json")
    for id_, entry in config.get("added_tokens_decoder", {}).items():
        added_tokens.setdefault(entry["content"], int(id_))
    control = {"<unk>", "<s>", "</s>"}
    return {token: id_ for token, id_ in added_tokens.items() if token not in control}


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
