"""Endless batches whose position is one number, for the models of this room."""

from collections.abc import Mapping

import numpy as np


class NumberedBatches:
    """Batch n is a function of (seed, n) alone: `draw(rng)`, which the subclass defines."""

    def __init__(self, seed: int):
        self._seed, self._position = seed, 0

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._position])
        self._position += 1
        return self.draw(rng)

    def state(self) -> dict[str, bytes]:
        return {"number": str(self._position).encode()}

    def restore(self, positions: Mapping[str, bytes]) -> None:
        self._position = int(positions["number"])
