"""Small byte-level tokenizers of the kinds of GPT-2, Qwen and LLaMA 3, as Hugging Face folders."""

import functools
import json
import random
from pathlib import Path

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from speechgpt_jax.data import descriptions

GPT2, QWEN, LLAMA3 = KINDS = ("gpt2", "qwen", "llama3")

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXTS = [*descriptions.ASR, *descriptions.TTS, "it's 1984, isn't it?", "na\u00efve caf\u00e9\n\n"]
_SPECIAL = {
    GPT2: ["<|endoftext|>"],
    QWEN: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    LLAMA3: [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>"),
    ],
}
_CONFIG = {
    GPT2: {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
    QWEN: {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
    },
    LLAMA3: {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"},
        "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"},
    },
}
# An added token of each form: white space beside it is dropped, and case or accents may differ.
FORMS = [
    AddedToken("<left>", lstrip=True, normalized=False),
    AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("caf\u00e9s", normalized=True),
    AddedToken("word", single_word=True, normalized=False),
    AddedToken("<|tool|>", special=True, normalized=False),
]


@functools.cache
def trained(kind: str) -> str:
    """tokenizer.json: 600 pieces and special tokens, then the tokens of FORMS."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == GPT2)
    fast = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == LLAMA3))
    fast.pre_tokenizer = byte_level
    if kind != GPT2:
        digits = r"\p{N}{1,3}" if kind == LLAMA3 else r"\p{N}"
        split = pre_tokenizers.Split(Regex(_SPLIT.replace("DIGITS", digits)), "isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if kind == QWEN:
        fast.normalizer = normalizers.NFC()
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(_TEXTS, trainer)
    special = [AddedToken(t, special=True, normalized=False) for t in _SPECIAL[kind]]
    fast.add_special_tokens(special)
    fast.add_tokens(FORMS)
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind == LLAMA3:
        bos = _SPECIAL[kind][0]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, fast.token_to_id(bos))]
        )
    return fast.to_str()


def _is_end(token: str) -> bool:
    return not any(word in token for word in ("start", "begin", "header"))


def write(folder: Path, kind: str) -> Path:
    """Writes the files that a checkpoint of this kind has; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained(kind))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG[kind]))
    fast = tokenizers.Tokenizer.from_str(trained(kind))
    ends = [fast.token_to_id(token) for token in reversed(_SPECIAL[kind]) if _is_end(token)]
    generation = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


_FRAGMENTS = [
    ["[Human]", "[SpeechGPT]", "<sosp>", "<eosp>", "<eoh>", "<eos>", "<5>", "<199>"],
    ["<", ">", "<1000>", "<01>", "< 5>", "<5", "[Human", "<|im_end", "|>", "<s>"],
    [" ", "  ", "\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "\0"],
    ["hello", "the license", "1984", "it's", "\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f600"],
    [str(token.content) for token in FORMS] + ["cafe\u0301s", "words", "sword"],
    [token for special in _SPECIAL.values() for token in special],
]


def mix(rng: random.Random, texts: list[str]) -> str:
    """Up to eight fragments: added tokens, parts of them, white space, words, or of `texts`."""
    fragments = [*_FRAGMENTS, texts]
    return "".join(rng.choice(rng.choice(fragments)) for _ in range(rng.randrange(9)))
