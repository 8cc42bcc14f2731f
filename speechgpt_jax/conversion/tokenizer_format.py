"""Our tokenizer as files with which `transformers.AutoTokenizer` gives our ids.

Text is cut at the added tokens, white space around them goes, and every piece left gets its own
leading `▁` (see `speechgpt_jax.tokenizer`). A current `LlamaTokenizer` does otherwise, so the
folder asks for the plain fast tokenizer, whose rules all stand in tokenizer.json. `<s>` in a text
is ordinary text, as with us. Not the same: the separators U+001C to U+001F beside an added token,
which Python strips as white space and Rust does not.
"""

import json
import pathlib

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, decoders, models, normalizers, processors

from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import Tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"


def write(tokenizer: Tokenizer, folder: pathlib.Path, context_length: int):
    """Writes tokenizer.json, tokenizer_config.json, tokenizer.model and added_tokens.json.

    Raises:
      UserError: the SentencePiece model is not of LLaMA's kind.
    """
    tokenizer.save_pretrained(folder)
    build(tokenizer).save(str(folder / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": UNK,
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")


def build(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same as a tokenizer of the `tokenizers` library, bos in front."""
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
    by_id = sorted(tokenizer.added_tokens, key=tokenizer.added_tokens.get)
    fast.add_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False, special=False) for t in by_id]
    )
    _check_ids(tokenizer, fast)
    return fast


def merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the one with the best score first."""
    ranked = []
    for piece, id_ in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[id_], left, right, piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _check_kind(proto: ModelProto):
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
            " normalisation, <unk> <s> </s> first), so no tokenizer.json gives its ids."
        )


def _check_ids(tokenizer, fast):
    for token, id_ in tokenizer.added_tokens.items():
        if fast.token_to_id(token) != id_:
            raise UserError(
                f"{token!r} has id {id_}, and would have {fast.token_to_id(token)} in"
                " tokenizer.json: added tokens must follow the pieces without a gap."
            )
