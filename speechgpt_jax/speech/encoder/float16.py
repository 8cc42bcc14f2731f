"""Features as float16, which takes half the space of float32 and holds at most 65504."""

import os

import numpy as np

from speechgpt_jax.errors import UserError


def to_float16(features: np.ndarray, model: str | os.PathLike) -> np.ndarray:
    """Features [T, D] as float16.

    Args:
      features: float32 [T, D].
      model: name of the model that computed them, for the message.

    Raises:
      UserError: a feature is NaN, infinite or too large for float16.
    """
    with np.errstate(over="ignore"):
        result = features.astype(np.float16)
    if np.isfinite(result).all():
        return result
    largest = float(np.abs(features).max(initial=0.0))  # NaN if there is one.
    raise UserError(
        f"{model} gives features of up to {largest:g}; expected finite ones, at most "
        f"{np.finfo(np.float16).max:g}. Its weights are damaged or far too large: train or convert "
        "it again."
    )
