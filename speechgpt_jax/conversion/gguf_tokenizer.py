"""The tokenizer of a GGUF file, from its metadata `tokenizer.ggml.*`.

Byte-level BPE ("gpt2") becomes a tokenizer.json, LLaMA's SentencePiece ("llama") a SentencePiece
model. A file only names the way in which text is cut into words; llama.cpp knows the patterns.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from speechgpt_jax.conversion.tokenizer_format import sentencepiece_model
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields
from speechgpt_jax.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

# Kinds of tokens, numbered from 1 as in SentencePiece.
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Splitting:
    """How text is cut into words before byte-level BPE.

    Attributes:
      pattern: regular expression of the words; None is GPT-2's.
      single_digits: every digit is a word; for GPT-2's words.
      composes: accents are joined to their letters first (NFC).
      whole_words: words in the vocabulary are not merged from their parts.
      has_bos: a text starts with bos unless the file says otherwise.
    """

    pattern: str | None = None
    single_digits: bool = False
    composes: bool = False
    whole_words: bool = False
    has_bos: bool = False


_QWEN = _Splitting(_WORDS % r"\p{N}", composes=True)
_LLAMA3 = _Splitting(_WORDS % r"\p{N}{1,3}", whole_words=True, has_bos=True)
# By their names in `tokenizer.ggml.pre`.
_SPLITTINGS = {
    **dict.fromkeys(("default", "gpt-2"), _Splitting()),
    "smollm": _Splitting(single_digits=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
}


def build(metadata: Fields) -> Tokenizer:
    """The tokenizer of a file, from its metadata.

    Raises:
      UserError: it is incomplete, damaged or of a kind that is not built here.
    """
    prefix = "tokenizer.ggml."
    values = metadata.values.items()
    fields = Fields(
        {name.removeprefix(prefix): value for name, value in values if name.startswith(prefix)},
        f"{metadata.source}: tokenizer.ggml",
    )
    kind = fields.get("model", str)
    with naming(metadata.source):
        if kind == "gpt2":
            return _byte_level(fields, metadata.get("tokenizer.chat_template", str))
        if kind == "llama":
            return _sentencepiece(fields)
    raise UserError(
        f"{metadata.source} has a tokenizer of the kind {kind!r}; only 'gpt2' and 'llama' are built"
        " here: convert the model's Hugging Face folder."
    )


def _byte_level(fields: Fields, chat_template: str | None) -> HuggingFaceTokenizer:
    name = fields.get("pre", str, "default")
    if name not in _SPLITTINGS:
        raise UserError(
            f"{fields.source} splits text as {name!r}; only {', '.join(_SPLITTINGS)} are known"
            " here, and another splitting would give other ids: convert the model's Hugging Face"
            " folder."
        )
    splitting = _SPLITTINGS[name]
    tokens, kinds = _tokens(fields)
    merges = [tuple(merge.split(" ")) for merge in fields.require("merges", list[str])]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # The library raises nothing more specific.
        raise UserError(
            f"{fields.source}: its merges don't fit its tokens ({error}); get the file again."
        ) from error
    fast = tokenizers.Tokenizer(model)
    if splitting.composes:
        fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = _pre_tokenizer(splitting)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(_added(tokens, kinds, _CONTROL))
    fast.add_tokens(_added(tokens, kinds, _USER_DEFINED))
    ids = {
        key: fields.get(f"{key}_token_id", int, at_least=0, below=len(tokens))
        for key in ("bos", "eos", "unknown", "padding", "eot")
    }
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{role}_token": tokens[ids[key]] for role, key in roles.items() if ids[key] is not None
    }
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
    if fields.get("add_bos_token", bool, splitting.has_bos):
        if ids["bos"] is None:
            raise UserError(
                f"{fields.source} starts texts with bos, but has no bos_token_id; get the file"
                " again."
            )
        bos = named["bos_token"]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    template = {} if chat_template is None else {"chat_template": chat_template}
    ends = [ids[key] for key in ("eos", "eot") if ids[key] is not None]
    return HuggingFaceTokenizer(fast.to_str(), named | template, ends)


def _pre_tokenizer(splitting: _Splitting) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=splitting.pattern is None
    )
    if splitting.pattern is not None:
        first = pre_tokenizers.Split(Regex(splitting.pattern), "isolated")
    elif splitting.single_digits:
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        return byte_level
    return pre_tokenizers.Sequence([first, byte_level])


def _added(tokens: Sequence[str], kinds: Sequence[int], kind: int) -> list[AddedToken]:
    return [
        AddedToken(t, normalized=False) for t, its_kind in zip(tokens, kinds) if its_kind == kind
    ]


def _sentencepiece(fields: Fields) -> SentencePieceTokenizer:
    """LLaMA's tokenizer; the tokens that were added after its pieces stay added tokens."""
    tokens, kinds = _tokens(fields)
    scores = _of_each(tokens, fields, "scores", list[float])
    added = (_CONTROL, _USER_DEFINED)
    num_pieces = 1 + max((i for i, kind in enumerate(kinds) if kind not in added), default=-1)
    model = sentencepiece_model(tokens[:num_pieces], scores, kinds)
    try:
        return SentencePieceTokenizer(
            model, {t: i for i, t in enumerate(tokens) if i >= num_pieces}
        )
    except RuntimeError as error:  # The library refuses the pieces.
        raise UserError(
            f"{fields.source}: its tokens are damaged ({error}); get the file again."
        ) from error


def _tokens(fields: Fields) -> tuple[list[str], list[int]]:
    """Text and kind of each token."""
    tokens = fields.require("tokens", list[str])
    return tokens, _of_each(tokens, fields, "token_type", list[int], at_least=1, at_most=_BYTE)


def _of_each(
    tokens: Sequence[str], fields: Fields, name: str, kind: Any, **limits: float
) -> list[Any]:
    """A field with one value for each token; arguments as in `Fields.require`."""
    values = fields.require(name, kind, **limits)
    if len(values) != len(tokens):
        raise UserError(
            f"{fields.source} has {len(values)} {name} for {len(tokens)} tokens; get the file"
            " again."
        )
    return values
