"""Packs whole examples into rows of fixed length, chosen from a pool so that little is padding.

SeqIO's own packing fills one row at a time in order and leaves about a fifth of it as padding at
the lengths of speech dialogues; choosing from a pool of 256 examples leaves 1 to 3 %.
"""

import io
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from speechgpt_jax.errors import UserError

logger = logging.getLogger(__name__)

# Feature -> tokens [N], as in SeqIO's tasks: optional `inputs`, without loss, then `targets`.
Example = Mapping[str, np.ndarray]

# A pool is full at POOL_SIZE examples or POOL_TOKENS tokens: a saved position holds the pool, and
# with long rows would otherwise exceed 1 MB.
POOL_SIZE, POOL_TOKENS = 256, 200_000

FEATURES = ("inputs", "targets")


class Packer:
    """A pool of examples from which rows are filled.

    Every row starts with the oldest example, so that none stays in the pool, then takes the longest
    that still fit. Examples longer than a row are dropped, counted and logged; cut answers would
    teach a model to stop early.

    Args:
      length: tokens of a row.
    """

    def __init__(self, length: int):
        self.length = length
        self.taken = self.dropped = 0
        self._pool: list[Example] = []
        self._sizes: list[int] = []

    def __len__(self) -> int:
        """Number of examples in the pool."""
        return len(self._pool)

    @property
    def is_full(self) -> bool:
        """Whether the next row can be filled; until then, add examples."""
        return len(self._pool) >= POOL_SIZE or sum(self._sizes) >= POOL_TOKENS

    def add(self, example: Example) -> None:
        """Adds an example to the pool, or drops it if it is longer than a row."""
        self.taken += 1
        self._keep(example)

    def _keep(self, example: Example) -> None:
        size = _size(example)
        if size > self.length:
            self._drop()
        else:
            self._pool.append(example)
            self._sizes.append(size)

    def fill_row(self) -> list[Example]:
        """Removes and returns the examples of one row; the pool must not be empty."""
        row = []
        chosen, free = 0, self.length
        while chosen is not None:
            row.append(self._pool.pop(chosen))
            free -= self._sizes.pop(chosen)
            chosen = self._longest_of_at_most(free)
        return row

    def state(self) -> dict[str, np.ndarray]:
        """Pool and counts as arrays."""
        return {"counts": np.array([self.taken, self.dropped]), **concatenate(self._pool)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores pool and counts; `state` may come from a packer of another row length."""
        state = dict(state)
        self.taken, self.dropped = state.pop("counts").tolist()
        self._pool, self._sizes = [], []
        for example in separate(state):
            self._keep(example)

    def _longest_of_at_most(self, free: int) -> int | None:
        """Index of the longest example of at most `free` tokens; None if there is none."""
        sizes = np.array(self._sizes)
        fitting = np.where(sizes <= free, sizes, 0)
        return int(fitting.argmax()) if fitting.any() else None

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == self.taken >= 1000:
            raise UserError(
                f"None of the first {self.taken} examples fits into {self.length} tokens; "
                "set a longer sequence_length."
            )
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8, ...
            logger.warning(
                "Dropped %d of %d examples (%.1f %%) longer than %d tokens.",
                self.dropped,
                self.taken,
                100 * self.dropped / self.taken,
                self.length,
            )


def pack(
    examples: Sequence[Example], length: int, bos_id: int | None, unk_id: int | None
) -> dict[str, np.ndarray]:
    """One row of SeqIO's decoder features: the examples one after another, then padding.

    inputs [7], targets [8, 2] and inputs [9], targets [2], bos 1, length 6 ->
      decoder_target_tokens [7, 8, 2, 9, 2, 0]
      decoder_input_tokens  [1, 7, 8, 1, 9, 0]
      decoder_loss_weights  [0, 1, 1, 0, 1, 0]
      decoder_segment_ids   [1, 1, 1, 2, 2, 0]
      decoder_positions     [0, 1, 2, 0, 1, 0]

    Without bos the first token of an example is only an input, since nothing predicts it. A model
    should not learn to write the unknown piece, so `unk_id` has no loss.
    """
    sizes = [_size(example) for example in examples]
    prefixes = [_size(example) - len(example["targets"]) for example in examples]
    tokens = np.concatenate(
        [part for e in examples for part in (e.get("inputs", []), e["targets"])]
    )
    positions = np.concatenate([np.arange(size) for size in sizes])
    row = {
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.where(positions == 0, bos_id or 0, np.roll(tokens, 1)),
        "decoder_loss_weights": positions >= np.repeat(prefixes, sizes),
        "decoder_segment_ids": np.repeat(np.arange(1, len(sizes) + 1), sizes),
        "decoder_positions": positions,
    }
    if unk_id is not None:
        row["decoder_loss_weights"] &= tokens != unk_id
    if bos_id is None:
        row = {key: value[positions > 0] for key, value in row.items()}
        row["decoder_positions"] -= 1
    return {key: _pad(value, length) for key, value in row.items()}


def concatenate(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Examples -> one array per feature, and the sizes by which `separate` splits it."""
    arrays = {}
    for key in examples[0] if examples else ():
        tokens = np.concatenate([example[key] for example in examples])
        arrays[key] = tokens.astype(np.min_scalar_type(tokens.max(initial=0)))
        arrays[f"{key}/sizes"] = np.array([len(example[key]) for example in examples])
    return arrays


def separate(arrays: Mapping[str, np.ndarray]) -> list[Example]:
    """The inverse of `concatenate`."""
    keys = [key for key in arrays if not key.endswith("/sizes")]
    parts = [
        np.split(arrays[key].astype(np.int32, copy=False), np.cumsum(arrays[f"{key}/sizes"])[:-1])
        for key in keys
    ]
    return [dict(zip(keys, example)) for example in zip(*parts)]


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The inverse of `to_bytes`."""
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def _size(example: Example) -> int:
    return sum(map(len, example.values()))


def _pad(values: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros(length, np.int32)
    padded[: len(values)] = values
    return padded
