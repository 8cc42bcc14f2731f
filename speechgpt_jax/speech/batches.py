"""Endless random batches whose position is one number."""

from collections.abc import Collection, Mapping

import numpy as np


class NumberedBatches:
    """Endless batches; batch n depends on (seed, n) only, so training resumes at any step.

    Subclasses define `draw(rng)`, which makes a batch from random numbers.

    Attributes:
      position_names: names of the entries of `state()`.
    """

    position_names: Collection[str] = ("number",)

    def __init__(self, seed: int):
        self._seed, self._position = seed, 0

    def __iter__(self) -> "NumberedBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._position])
        self._position += 1
        return self.draw(rng)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One batch."""
        raise NotImplementedError

    def state(self) -> dict[str, bytes]:
        """Position to be saved in a checkpoint."""
        return {"number": str(self._position).encode()}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Continues after the batches that had been drawn when `state` was taken."""
        self._position = int(state["number"])
