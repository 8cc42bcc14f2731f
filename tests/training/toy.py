"""A LLaMA of two small layers, and random batches in SeqIO's form."""

import json
import time

import numpy as np

from speechgpt_jax.models.llama import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
)
UNITS = range(40, 60)


def random_batch(lengths, seed=0, prefix=2):
    """One example per row, [B, T], with random targets; the first `prefix` have no loss."""
    rng = np.random.default_rng(seed)
    length = max(lengths)
    batch = {
        key: np.zeros((len(lengths), length), np.int32)
        for key in ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")
    }
    for row, n in enumerate(lengths):
        tokens = rng.integers(3, 60, n)
        batch["target_tokens"][row, :n] = tokens
        batch["input_tokens"][row, :n] = [1, *tokens[:-1]]
        batch["loss_weights"][row, prefix:n] = 1
        batch["segment_ids"][row, :n] = 1
        batch["positions"][row, :n] = np.arange(n)
    return {f"decoder_{key}": value for key, value in batch.items()}


class RandomBatches:
    """Endless batches of `rows` rows; the position is the number of batches so far."""

    position_names = ("count",)

    def __init__(self, rows: int = 4, length: int = 12):
        self.rows, self.length, self.count = rows, length, 0

    def __next__(self):
        self.count += 1
        lengths = np.random.default_rng(self.count).integers(4, self.length + 1, self.rows)
        return random_batch([*lengths[1:], self.length], self.count)

    def state(self) -> dict[str, bytes]:
        return {"count": json.dumps(self.count).encode()}

    def restore(self, positions: dict[str, bytes]):
        self.count = json.loads(positions["count"])


def hanging_batches():
    """Reads from a file system that doesn't answer."""
    time.sleep(100)
