"""Unit text to ids: ours in the graph and in Python, beside Hugging Face's tokenizers.

    .venv/bin/python -m tests.benchmarks.bench_tokenizer --rounds=5

1,024 SpeechInstruct-like dialogues: a question in text and an answer of some 180 units. Tokens a
second of wall and of CPU time, medians, taken in turns; threads are batches encoded at a time.
"""

import argparse
import tempfile

import numpy as np
import tensorflow as tf
import transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from speechgpt_jax import prompts
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tests.benchmarks import timing
from tests.benchmarks.dialogues import dialogue_lengths

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
    """The same tokens in transformers; its ids at role tokens are others, see the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        made = {
            # The slow tokenizer's code; since version 5 no LLaMA class has it of its own.
            "Hugging Face slow": SentencePieceBackend(vocab_file=f"{folder}/tokenizer.model"),
            "Hugging Face fast": transformers.LlamaTokenizer.from_pretrained(folder),
        }
    for theirs in made.values():
        theirs.add_tokens(list(tokenizer.added_tokens))
    return made


def encode_all(texts: list[str], vocabulary: Vocabulary, threads: int):
    dataset = tf.data.Dataset.from_tensor_slices(texts).repeat().batch(BATCH)
    # One iterator for all rounds: to make it is to optimise its graph.
    batches = iter(dataset.map(vocabulary.encode_tf, num_parallel_calls=threads))

    def run():
        for _ in range(len(texts) // BATCH):
            next(batches)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    vocabulary = Vocabulary.from_pretrained(GOLDEN)
    texts = dialogues(1024)
    tokens = sum(len(vocabulary.encode(text)) for text in texts)
    runs = {
        "encode_tf, 1 thread": encode_all(texts, vocabulary, 1),
        "encode_tf, 2 threads": encode_all(texts, vocabulary, 2),
        "encode": lambda: [vocabulary.encode(text) for text in texts],
    }
    for name, theirs in hugging_face(vocabulary.tokenizer).items():
        runs[name] = lambda theirs=theirs: theirs(texts)
    print(f"{'million tokens a second of':24}{'wall':>8}{'CPU time':>10}")
    for name, (wall, cpu) in zip(runs, timing.wall_and_cpu(args.rounds, *runs.values())):
        print(f"{name:26}{tokens / wall / 1e6:8.2f}{tokens / cpu / 1e6:10.2f}")


if __name__ == "__main__":
    main()
