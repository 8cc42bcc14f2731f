"""Tokenizers in Hugging Face's files, read and written.

`read` takes tokenizer.model, or a tokenizer.json that transformers made from one, as SentencePiece
with the rules of the released SpeechGPT; every other tokenizer.json is taken as it is.

`write` makes files from which `transformers.AutoTokenizer` computes our ids. The folder names the
plain fast tokenizer, whose rules are all in tokenizer.json; the classes of single models replace a
part of them.

For SentencePiece, text is split at the added tokens, white space around them is dropped, and each
part gets its own leading `▁` (see `speechgpt_jax.tokenizer.sentencepiece`). `<s>` in a text is
ordinary text. One difference remains: Python strips the separators U+001C to U+001F beside an added
token as white space, Rust does not.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import tokenizers
from etils import epath
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, decoders, models, normalizers, processors

from speechgpt_jax import files, prompts
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields
from speechgpt_jax.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from speechgpt_jax.tokenizer.hugging_face import token_text
from speechgpt_jax.tokenizer.sentencepiece import read_added_tokens

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
_SENTENCEPIECE_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": UNK,
    "pad_token": UNK,
    "padding_side": "left",
    "split_special_tokens": True,
    "clean_up_tokenization_spaces": False,
}
# Fields of tokenizer_config.json that are not exported: tokenizer.json has all added tokens, and
# Python files of the source are not copied.
_LEFT_OUT = ("added_tokens_decoder", "auto_map")
# Names of padding tokens, which often have no row in the embedding.
_PADDING = ("<pad>", "<PAD>", "[PAD]")


# ---- reading -------------------------------------------------------------------------------------


def read(folder: pathlib.Path, num_rows: int) -> Tokenizer | None:
    """Reads the tokenizer of a Hugging Face folder; if there is none, prints a note, returns None.

    Args:
      folder: has tokenizer.model or tokenizer.json.
      num_rows: rows of the embedding; a padding token without a row is dropped.

    Raises:
      UserError: a file is damaged, or the tokenizer has more tokens than the embedding rows.
    """
    path = folder / "tokenizer.json"
    fields = Fields.read(path) if path.exists() else Fields({}, str(path))
    fast = fields.values
    entries = [
        Fields(x, f"{path}: added_tokens") for x in fields.get("added_tokens", list[Mapping], [])
    ]
    added = {x.require("content", str): x.require("id", int, at_least=0) for x in entries}
    try:
        model = _sentencepiece_model(fast)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); get it again.") from error
    if (folder / "tokenizer.model").exists():
        slow = SentencePieceTokenizer.from_folder(folder)
        model, added = slow.model, added | slow.added_tokens
    elif model:
        added |= read_added_tokens(folder)
    elif fast:
        return check_rows(_read_fast(folder, num_rows), num_rows, folder)
    else:
        print(
            f"{folder} has no tokenizer.model and no tokenizer.json: the run gets no tokenizer, so"
            " it can be exported but not trained or asked. Put one of them into the folder and"
            " convert again."
        )
        return None
    tokenizer = SentencePieceTokenizer(model, _with_rows(added, num_rows, folder))
    return check_rows(tokenizer, num_rows, folder)


def check_rows(tokenizer: Tokenizer, num_rows: int, folder: pathlib.Path) -> Tokenizer:
    """Returns `tokenizer`; raises a UserError if the embedding has fewer rows than it has ids."""
    if tokenizer.vocab_size > num_rows:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the embedding only"
            f" {num_rows} rows: take both from the same checkpoint."
        )
    return tokenizer


def _read_fast(folder: pathlib.Path, num_rows: int) -> HuggingFaceTokenizer:
    """A tokenizer.json without the padding token if that has no row."""
    tokenizer = HuggingFaceTokenizer.from_folder(folder)
    kept = _with_rows(tokenizer.added_tokens, num_rows, folder)
    if len(kept) == len(tokenizer.added_tokens):
        return tokenizer
    fields = json.loads(tokenizer.model)
    fields["added_tokens"] = [x for x in fields["added_tokens"] if x["content"] in kept]
    config = {n: x for n, x in tokenizer.config.items() if n != "pad_token"}
    return HuggingFaceTokenizer(json.dumps(fields), config, tokenizer.stop_ids)


def _with_rows(added: Mapping[str, int], num_rows: int, folder: pathlib.Path) -> dict[str, int]:
    """The added tokens that have a row in the embedding.

    Raises:
      UserError: a token without a row is not padding.
    """
    beyond = {token: id_ for token, id_ in added.items() if id_ >= num_rows}
    if unknown := sorted(beyond.keys() - {*_PADDING, _padding_token(folder)}):
        raise UserError(
            f"{folder}: the tokenizer has {max(beyond.values()) + 1} ids, {unknown[0]!r} among"
            f" them, but the embedding only {num_rows} rows: take both from the same checkpoint."
        )
    for token, id_ in beyond.items():
        print(f"{token} is left out: its id {id_} has no row among the {num_rows} of the model.")
    return {token: id_ for token, id_ in added.items() if id_ < num_rows}


def _padding_token(folder: pathlib.Path) -> str | None:
    path = folder / "tokenizer_config.json"
    return token_text(Fields.read(path), "pad_token") if path.exists() else None


def _sentencepiece_model(fast: Mapping) -> bytes | None:
    """The SentencePiece model that a tokenizer.json was made from; None if there is none.

    SentencePiece's BPE merges the neighbours whose joined piece has the best score. So the merges
    must be all pairs of pieces that join to a piece; the order of the merges gives the scores.
    """
    model = fast.get("model", {})
    if not (model.get("type") == "BPE" and model.get("byte_fallback") and _adds_prefix(fast)):
        return None
    vocabulary = model["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    if pieces[:3] != [UNK, BOS, EOS] or [*map(vocabulary.get, pieces)] != [*range(len(pieces))]:
        return None
    theirs = [tuple(x.split(" ") if isinstance(x, str) else x) for x in model["merges"]]
    made = list(dict.fromkeys("".join(pair) for pair in theirs))
    # Pieces without a merge, such as single characters, follow in the order of their ids.
    made += [piece for piece in pieces if piece not in set(made)]
    scores = {piece: -float(rank) for rank, piece in enumerate(made)}
    ours = merges(vocabulary, [scores[piece] for piece in pieces])
    if sorted(ours) != sorted(theirs):
        return None
    kinds = ModelProto.SentencePiece
    special = {UNK: kinds.UNKNOWN, BOS: kinds.CONTROL, EOS: kinds.CONTROL}
    special |= {f"<0x{byte:02X}>": kinds.BYTE for byte in range(256)}
    return sentencepiece_model(
        pieces,
        [0.0 if piece in special else scores[piece] for piece in pieces],
        [special.get(piece, kinds.NORMAL) for piece in pieces],
    )


def _adds_prefix(fast: Mapping) -> bool:
    """Whether texts get a leading ▁ and spaces become ▁, in any spelling of transformers."""
    steps = [*_steps(fast.get("normalizer")), *_steps(fast.get("pre_tokenizer"))]
    kinds = [step["type"] for step in steps]
    if kinds == ["Metaspace"]:
        return steps[0].get("prepend_scheme", "always") != "never" and not steps[0].get("split")
    return kinds == ["Prepend", "Replace"]


def _steps(step: Mapping | None) -> Sequence[Mapping]:
    if step is None:
        return []
    return step.get("normalizers") or step.get("pretokenizers") or [step]


def sentencepiece_model(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> bytes:
    """A serialised SentencePiece model with LLaMA's settings; `kinds` are SentencePiece's."""
    proto = ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    for piece, score, kind in zip(pieces, scores, kinds):
        proto.pieces.add(piece=piece, score=score, type=int(kind))
    return proto.SerializeToString()


# ---- writing -------------------------------------------------------------------------------------


def write(tokenizer: Tokenizer, folder: epath.Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json; for SentencePiece also its own files.

    Raises:
      UserError: the SentencePiece model is not of LLaMA's kind.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(build(tokenizer).to_str(pretty=True))
        fields = dict(_SENTENCEPIECE_CONFIG)
        if tokenizer.added_tokens.keys() >= {*prompts.MARKERS}:
            # Without bos, whose text is no token: `tokenizer(text)` puts it in front.
            fields["chat_template"] = tokenizer.template.jinja(with_bos=False)
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        files.write_text(folder / "tokenizer.json", tokenizer.model + "\n")
        fields = {n: x for n, x in tokenizer.config.items() if n not in _LEFT_OUT}
        # Other classes than this one replace rules of tokenizer.json by their own.
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields["model_max_length"] = max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")


def build(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """The tokenizer in the `tokenizers` library; it puts bos in front of a text."""
    proto = ModelProto.FromString(tokenizer.model)
    _check_kind(proto)
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = [piece.score for piece in proto.pieces]
    fast = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            merges(vocabulary, scores),
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.bos_id)]
    )
    by_id = sorted(tokenizer.added_tokens, key=tokenizer.added_tokens.__getitem__)
    fast.add_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False, special=False) for t in by_id]
    )
    _check_ids(tokenizer, fast)
    return fast


def merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, best score first."""
    ranked = []
    for piece, id_ in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[id_], left, right, piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _check_kind(proto: ModelProto) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    is_llama = (
        trainer.model_type == trainer.BPE
        and trainer.byte_fallback
        and normalizer.add_dummy_prefix
        and not normalizer.remove_extra_whitespaces
        and not normalizer.precompiled_charsmap
        and all(p.type != p.USER_DEFINED for p in proto.pieces)
        and [p.piece for p in proto.pieces[:3]] == [UNK, BOS, EOS]
    )
    if not is_llama:
        raise UserError(
            "the SentencePiece model is not of LLaMA's kind (BPE with byte fallback, no"
            " normalisation, <unk> <s> </s> first), so no tokenizer.json gives its ids; remove the"
            " run's tokenizer folder to export the weights only."
        )


def _check_ids(tokenizer: SentencePieceTokenizer, fast: tokenizers.Tokenizer) -> None:
    for token, id_ in tokenizer.added_tokens.items():
        if fast.token_to_id(token) != id_:
            raise UserError(
                f"{token!r} has id {id_}, and would have {fast.token_to_id(token)} in"
                " tokenizer.json: added tokens must follow the pieces without a gap; give the"
                " missing ids tokens in the run's tokenizer/added_tokens.json."
            )
