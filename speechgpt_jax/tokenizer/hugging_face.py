"""A tokenizer.json of the `tokenizers` library: byte-level BPE and all other kinds.

The ids are those of transformers' AutoTokenizer without special tokens: text is split at the added
tokens by their `lstrip`, `rstrip` and `normalized`, and special tokens in a text, such as
`<|im_end|>`, become their ids, since chat templates are made of them.

A folder has tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json
and chat_template.jinja, which name the special tokens, and generation_config.json or config.json,
which name the tokens that end an answer. `dialogue_template` in tokenizer_config.json names one of
`prompts.TEMPLATES`, of which `chat_template` then is Hugging Face's form.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath

from speechgpt_jax import files, prompts, shipped
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields
from speechgpt_jax.tokenizer.interface import Tokenizer

_SPACE = "▁"


def _bytes_of_characters() -> dict[str, int]:
    """The characters that byte-level vocabularies are written in, and the byte of each.

    Bytes that Latin-1 shows stand for themselves, the others follow from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in shown)
    return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES_OF_CHARACTERS = _bytes_of_characters()
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json with its special tokens; the module's docstring has the rules.

    Attributes:
      config: fields of tokenizer_config.json.
    """

    def __init__(self, model: str, config: Mapping[str, Any], stop_ids: Sequence[int]):
        """
        Args:
          model: content of tokenizer.json.
          config: fields of tokenizer_config.json.
          stop_ids: ids that end an answer besides eos.

        Raises:
          UserError: the content is damaged, there is no eos, or the template is unknown or needs
            tokens that are missing.
        """
        self.config = dict(config)
        self._fields = Fields(self.config, "tokenizer_config.json")
        self._fast = _load(model)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = self._fields.get("split_special_tokens", bool, False)
        self._add_missing(self._fields.get("added_tokens_decoder", Mapping[str, Mapping], {}))
        decoder = self._fast.get_added_tokens_decoder()
        self.added_tokens = {str(token.content): id_ for id_, token in decoder.items()}
        self._special = frozenset(id_ for id_, token in decoder.items() if token.special)
        ids = self._fast.get_vocab(with_added_tokens=True).values()
        self._ids = frozenset(ids)
        self._bytes = frozenset(
            id_ for token, id_ in self._fast.get_vocab().items() if _BYTE.fullmatch(token)
        )
        self.bos_id = self._bos_id()
        self.template = prompts.template(
            self._fields.get("dialogue_template", str, self.template.name)
        )
        # Their texts are part of decoded dialogues.
        self._marks = {self.token_to_id(token): token for token in self.template.special_tokens}
        eos_id = self._named("eos_token")
        if eos_id is None and not stop_ids:
            raise UserError(
                "the tokenizer has no eos: name a token of its vocabulary as eos_token in"
                " tokenizer_config.json."
            )
        self.eos_id = stop_ids[0] if eos_id is None else eos_id
        self.stop_ids = tuple(dict.fromkeys([self.eos_id, *stop_ids]))
        if unknown := [id_ for id_ in self.stop_ids if id_ not in self._ids]:
            raise UserError(
                f"eos_token_id {unknown[0]} is no token's id; this tokenizer has"
                f" {self.vocab_size} ids: take all files from the same checkpoint."
            )
        pad_id = self._named("pad_token")
        self.pad_id = self.eos_id if pad_id is None else pad_id
        unknown_piece = getattr(self._fast.model, "unk_token", None)
        self.unk_id = None if unknown_piece is None else self._fast.token_to_id(unknown_piece)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "HuggingFaceTokenizer":
        """Reads the files of the module's docstring.

        Raises:
          UserError: a file is missing or damaged.
        """
        folder = shipped.find(folder)
        model = files.read_bytes(folder / "tokenizer.json", "a tokenizer.json")
        config = _read_json(folder / "special_tokens_map.json")
        config |= _read_json(folder / "tokenizer_config.json")
        if (folder / "chat_template.jinja").exists():
            template = files.read_bytes(folder / "chat_template.jinja", "a chat template")
            config["chat_template"] = template.decode(errors="replace")
        names = ("generation_config.json", "config.json")
        ids = (_eos_ids(folder / name) for name in names if (folder / name).exists())
        stop_ids = next((found for found in ids if found is not None), [])
        with naming(folder):
            return cls(model.decode(errors="replace"), config, stop_ids)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes two configs, then tokenizer.json, which completes the folder."""
        folder = epath.Path(folder)
        for name, fields in {
            "tokenizer_config": self.config,
            "generation_config": {"eos_token_id": list(self.stop_ids)},
        }.items():
            files.write_text(folder / f"{name}.json", json.dumps(fields, indent=2) + "\n")
        files.write_text(folder / "tokenizer.json", self.model + "\n")

    def with_tokens(self, tokens: Sequence[str]) -> "HuggingFaceTokenizer":
        if known := [token for token in tokens if self._fast.token_to_id(token) is not None]:
            raise UserError(f"the tokenizer has a token {known[0]!r} already.")
        extended = _load(self.model)
        extended.add_tokens(
            [tokenizers.AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in tokens]
        )
        for expected, token in enumerate(tokens, self.vocab_size):
            if extended.token_to_id(token) != expected:
                raise UserError(
                    f"{token!r} would get the id {extended.token_to_id(token)}, not {expected}: the"
                    " tokenizer's ids have a gap; give the missing ids tokens."
                )
        return HuggingFaceTokenizer(extended.to_str(), self.config, self.stop_ids)

    def with_template(self, name: str) -> "HuggingFaceTokenizer":
        template = prompts.template(name)
        fields = self.config | {
            "dialogue_template": name,
            "chat_template": template.jinja(with_bos=self.bos_id is not None),
        }
        if template.special_tokens:
            fields["eos_token"] = template.special_tokens[-1]
        try:
            return HuggingFaceTokenizer(self.model, fields, self.stop_ids)
        except UserError as error:
            raise UserError(f"template {name!r} does not fit the tokenizer: {error}") from error

    @property
    def model(self) -> str:
        """Content of tokenizer.json."""
        return self._fast.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens such as `<|im_end|>` in it become their ids."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, computed on all cores."""
        encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Special tokens are left out, except those of the template, which show where turns end.

        Raises:
          UserError: no token has one of these ids.
        """
        ids = [*map(int, ids)]
        for id_ in ids:
            if id_ not in self._ids:
                raise UserError(f"No token has id {id_}; this tokenizer has {self.vocab_size} ids.")
        parts = [
            "".join(map(self._marks.__getitem__, run))
            if are_marks
            else self._fast.decode([*run], skip_special_tokens=True)
            for are_marks, run in itertools.groupby(ids, self._marks.__contains__)
        ]
        return "".join(parts)

    def token_to_id(self, token: str) -> int:
        id_ = self._fast.token_to_id(token)
        if id_ is None:
            raise UserError(f"{token!r} is neither an added token nor a piece of this tokenizer.")
        return id_

    def is_byte(self, id_: int) -> bool:
        return id_ in self._bytes

    def token_bytes(self, id_: int) -> bytes:
        token = self._fast.id_to_token(id_)
        if token is None:
            raise UserError(f"No token has id {id_}; this tokenizer has {self.vocab_size} ids.")
        if self.added_tokens.get(token) == id_:
            is_left_out = id_ in self._special and id_ not in self._marks
            return b"" if is_left_out else token.encode()
        if id_ in self._bytes:  # <0x41>
            return bytes.fromhex(token[3:5])
        if "ByteLevel" in repr(self._fast.decoder):
            return bytes(map(_BYTES_OF_CHARACTERS.__getitem__, token))
        return token.replace(_SPACE, " ").encode()

    @property
    def vocab_size(self) -> int:
        return max(self._ids) + 1

    def __reduce__(self):
        return HuggingFaceTokenizer, (self.model, self.config, self.stop_ids)

    def _add_missing(self, decoder: Mapping[str, Mapping]) -> None:
        """Adds the tokens that only tokenizer_config.json has, as old versions saved them."""
        try:
            missing = {
                int(id_): tokenizers.AddedToken(
                    entry["content"],
                    **{
                        name: entry[name]
                        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
                        if name in entry
                    },
                )
                for id_, entry in decoder.items()
                if self._fast.token_to_id(entry["content"]) is None
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                "tokenizer_config.json: added_tokens_decoder must give each id a content."
            ) from error
        for id_ in sorted(missing):
            self._fast.add_tokens([missing[id_]])
            token = missing[id_].content
            if self._fast.token_to_id(token) != id_:
                raise UserError(
                    f"tokenizer_config.json gives {token!r} the id {id_}, and tokenizer.json"
                    f" {self._fast.token_to_id(token)}: take both from the same checkpoint."
                )

    def _bos_id(self) -> int | None:
        """The id that AutoTokenizer puts in front of a text."""
        if "add_bos_token" in self.config or "add_eos_token" in self.config:
            adds_bos = self._fields.get("add_bos_token", bool | None)
            return self._named("bos_token") if adds_bos else None
        plain = self._fast.encode("a", add_special_tokens=False).ids
        whole = self._fast.encode("a").ids
        before = whole[: _find(whole, plain)]
        if len(before) > 1:
            raise UserError(
                f"tokenizer.json puts {len(before)} tokens in front of a text; only one, bos, is"
                " built here."
            )
        return before[0] if before else None

    def _named(self, name: str) -> int | None:
        """Id of the token that tokenizer_config.json names, such as "eos_token"."""
        token = token_text(self._fields, name)
        return None if token is None else self._fast.token_to_id(token)


def _load(model: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(model)
    # The library raises nothing more specific.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"tokenizer.json is damaged, or of a version that tokenizers {tokenizers.__version__}"
            f" does not read ({reason}); get it again."
        ) from error


def _find(whole: Sequence[int], part: Sequence[int]) -> int:
    """Position of `part` in `whole`."""
    return next(i for i in range(len(whole)) if whole[i : i + len(part)] == part)


def token_text(config: Fields, name: str) -> str | None:
    """The token that tokenizer_config.json names, such as "eos_token": a text or an object."""
    token = config.get(name, str | Mapping | None)
    return config.inner(name).require("content", str) if isinstance(token, Mapping) else token


def _eos_ids(path: epath.Path) -> list[int] | None:
    """eos_token_id of a config, 2 or [2, 3], as a list; None if it has none."""
    ids = Fields.read(path).get("eos_token_id", int | list[int] | None)
    return [ids] if isinstance(ids, int) else ids


def _read_json(path: epath.Path) -> dict:
    return files.read_json(path) if path.exists() else {}
