"""The tokenizer of a GGUF file, from its metadata `tokenizer.ggml.*`.

Byte-level BPE ("gpt2") becomes a tokenizer.json, LLaMA's SentencePiece ("llama") a SentencePiece
model. A file only names the way in which text is cut into words; llama.cpp knows the patterns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from speechgpt_jax.conversion.tokenizer_format import sentencepiece_model
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

# Kinds of tokens, numbered as in SentencePiece.
_CONTROL, _USER_DEFINED = 3, 4

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Splitting:
    """How text is cut into words before byte-level BPE.

    Attributes:
      pattern: of the words; None is GPT-2's.
      single_digits: with GPT-2's words, every digit is a word.
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


def build(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a file.

    Args:
      metadata: of the file, by name.
      source: file that the metadata comes from, for messages.

    Raises:
      UserError: it is incomplete, damaged or of a kind that is not built here.
    """
    fields = {
        name.removeprefix("tokenizer.").removeprefix("ggml."): value
        for name, value in metadata.items()
        if name.startswith("tokenizer.")
    }
    kind = fields.get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{source} has a tokenizer of the kind {kind!r}; only 'gpt2' and 'llama' are built"
            " here."
        )
    for name in ("tokens", "token_type", "merges" if kind == "gpt2" else "scores"):
        if not fields.get(name):
            raise UserError(f"{source} has no tokenizer.ggml.{name}; get a file with a tokenizer.")
    try:
        return _byte_level(fields, source) if kind == "gpt2" else _sentencepiece(fields)
    except (IndexError, KeyError, TypeError) as error:
        raise UserError(f"{source}: its tokenizer is damaged ({error!r}); get it again.") from error


def _byte_level(fields: Mapping[str, Any], source: str) -> HuggingFaceTokenizer:
    name = fields.get("pre", "default")
    if name not in _SPLITTINGS:
        raise UserError(
            f"{source} splits text as {name!r}; only {', '.join(_SPLITTINGS)} are known here, and"
            " another splitting would give other ids: convert the model's Hugging Face folder."
        )
    splitting = _SPLITTINGS[name]
    tokens = fields["tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # The library raises nothing more specific.
        raise UserError(f"{source}: its merges don't fit its tokens ({error}).") from error
    fast = tokenizers.Tokenizer(model)
    if splitting.composes:
        fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = _pre_tokenizer(splitting)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(_added(fields, _CONTROL))
    fast.add_tokens(_added(fields, _USER_DEFINED))
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{role}_token": tokens[fields[f"{key}_token_id"]]
        for role, key in roles.items()
        if f"{key}_token_id" in fields
    }
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
    if fields.get("add_bos_token", splitting.has_bos):
        bos = named["bos_token"]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    template = {"chat_template": fields["chat_template"]} if "chat_template" in fields else {}
    ends = [fields[f"{end}_token_id"] for end in ("eos", "eot") if f"{end}_token_id" in fields]
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


def _added(fields: Mapping[str, Any], kind: int) -> list[AddedToken]:
    tokens = zip(fields["tokens"], fields["token_type"])
    return [AddedToken(token, normalized=False) for token, its_kind in tokens if its_kind == kind]


def _sentencepiece(fields: Mapping[str, Any]) -> SentencePieceTokenizer:
    """LLaMA's tokenizer; the tokens that were added after its pieces stay added tokens."""
    tokens: Sequence[str] = fields["tokens"]
    kinds: Sequence[int] = fields["token_type"]
    added = (_CONTROL, _USER_DEFINED)
    num_pieces = 1 + max(i for i, kind in enumerate(kinds) if kind not in added)
    model = sentencepiece_model(tokens[:num_pieces], fields["scores"], kinds)
    return SentencePieceTokenizer(model, {t: i for i, t in enumerate(tokens) if i >= num_pieces})
