"""Bad steps of a training run: found, their batches saved, and the run stopped if need be."""

import io
import os
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import write_bytes
from speechgpt_jax.training.progress import print_once

# Metric of a train step that may reject its batch: true if it did (`optimizer.Guard`).
REJECTED = "rejected"


class Review:
    """Finds the steps whose metrics are bad and saves their batches.

    Args:
      output_dir: gets `rejected/step_<N>.npz`, one per process, with the rows of that process.
      patience: number of rejected batches in a row that don't stop the run.
    """

    def __init__(self, output_dir: str | os.PathLike, patience: int):
        self._folder = epath.Path(output_dir) / "rejected"
        self._patience = patience
        self._in_a_row = 0

    def accepts(self, step: int, metrics: Mapping, batch: Mapping) -> bool:
        """True if the step is good, False if its batch was skipped.

        Raises:
          UserError: the run must stop; names the step and the file with its batch.
        """
        problem = _problem(metrics)
        if problem is None:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        file = self._save(step, batch)
        rejected = bool(metrics.get(REJECTED, False))
        if rejected and self._in_a_row <= self._patience:
            print_once(f"step {step}: {problem}; skipped. Its batch is in {file}.")
            return False
        raise UserError(
            f"step {step}: {problem}; the state after it is not saved. Its batch is in {file}."
            " Usual causes: the input, or too high a learning rate."
        )

    def _save(self, step, batch):
        name = f"step_{step}.npz"
        if jax.process_count() > 1:
            name = f"step_{step}_process_{jax.process_index()}.npz"
        rows = io.BytesIO()
        np.savez_compressed(rows, **batch)
        write_bytes(self._folder / name, rows.getvalue())
        return self._folder / name


def _problem(metrics: Mapping) -> str | None:
    """Description of what is wrong with a step, or None."""
    if bad := [name for name, value in metrics.items() if not np.isfinite(value).all()]:
        return f"{', '.join(bad)} not finite"
    if metrics.get(REJECTED, False):
        total, weight = metrics["loss"]
        return f"loss {total / weight:.3f} far above its running mean"
    return None
