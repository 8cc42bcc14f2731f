"""Speed of the tokenizers on unit text, in TensorFlow and in Python, beside Hugging Face's.

    python -m tests.benchmarks.bench_tokenizer --rounds=5

Tokenizes 1,024 dialogues like those of SpeechInstruct: a question in text and an answer of some 180
units, with a SentencePiece model and with a byte-level tokenizer.json of Qwen's kind. The figures
are tokens per second of wall time and of CPU time, medians of alternating rounds; a thread encodes
one batch at a time, which for a tokenizer.json is spread over all cores.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from speechgpt_jax import arguments, prompts
from speechgpt_jax.conversion import tokenizer_format
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tests.benchmarks import docs_table, timing
from tests.benchmarks.dialogues import dialogue_lengths
from tests.tokenizer.byte_level import QWEN, write

GOLDEN = "tests/testdata/golden"
BATCH = 32


def dialogues(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [
        prompts.CROSS_MODAL.format(
            description=prompts.SPEAK,
            source="what is two plus three",
            target=units_to_text(rng.integers(0, 1000, length)),
        )
        for length in dialogue_lengths(count)
    ]


def hugging_face(tokenizer: Tokenizer) -> dict:
    """The same tokenizer in transformers; its ids differ from ours at markers."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        made = {
            # Since version 5 no LLaMA class has the slow tokenizer; its code is in this class.
            "Hugging Face slow": SentencePieceBackend(vocab_file=f"{folder}/tokenizer.model"),
            "Hugging Face fast": transformers.LlamaTokenizer.from_pretrained(folder),
        }
    for theirs in made.values():
        theirs.add_tokens(list(tokenizer.added_tokens))
    return made


def byte_level(folder: Path) -> Tokenizer:
    """A tokenizer of Qwen's kind with 1,000 units."""
    units = [f"<{unit}>" for unit in range(1000)]
    plain = Tokenizer.from_pretrained(write(folder / "source", QWEN))
    tokenizer = plain.with_tokens([*units, *prompts.MARKERS])
    tokenizer_format.write(tokenizer, folder, max_length=2048)
    return tokenizer


def encode_all(texts: list[str], vocabulary: Vocabulary, threads: int) -> Callable[[], None]:
    dataset = tf.data.Dataset.from_tensor_slices(texts).repeat().batch(BATCH)
    # One iterator for all rounds, because making one optimizes the graph of the dataset.
    batches = iter(dataset.map(vocabulary.encode_tf, num_parallel_calls=threads))

    def run():
        for _ in range(len(texts) // BATCH):
            next(batches)

    return run


def measure(
    table: docs_table.Table,
    kind: str,
    vocabulary: Vocabulary,
    hugging_face: dict,
    texts: list[str],
    rounds: int,
) -> None:
    tokens = sum(len(vocabulary.encode(text)) for text in texts)
    runs = {
        "encode_tf, 1 thread": encode_all(texts, vocabulary, 1),
        "encode_tf, 2 threads": encode_all(texts, vocabulary, 2),
        "encode, Python": lambda: [vocabulary.encode(text) for text in texts],
    }
    for name, theirs in hugging_face.items():
        runs[name] = lambda theirs=theirs: theirs(texts)
    for name, times in zip(runs, timing.wall_and_cpu(rounds, *runs.values())):
        table.add(f"{kind}: {name}", *(f"{tokens / seconds / 1e6:.2f}" for seconds in times))


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--rounds", type=arguments.positive_int, default=5)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    vocabulary = Vocabulary.from_pretrained(GOLDEN)
    texts = dialogues(1024)
    theirs = hugging_face(vocabulary.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        json_vocabulary = Vocabulary(byte_level(Path(folder)))
        their_json = {"Hugging Face": transformers.AutoTokenizer.from_pretrained(folder)}
    table = docs_table.Table("tokenizer", ["million tokens/s", "wall time", "CPU time"])
    measure(table, "SentencePiece", vocabulary, theirs, texts, args.rounds)
    measure(table, "tokenizer.json", json_vocabulary, their_json, texts, args.rounds)
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
