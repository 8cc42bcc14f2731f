"""Units <-> unit text: `[661, 987]` <-> `<sosp><661><987><eosp>`."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from speechgpt_jax.errors import UserError

START, END = "<sosp>", "<eosp>"

_UNIT = re.compile(r"\s*<([0-9]+)>\s*")


def units_to_text(units: Iterable[int]) -> str:
    """`[5, 9]` -> `"<sosp><5><9><eosp>"`."""
    return START + "".join(f"<{int(unit)}>" for unit in units) + END


def text_to_units(text: str) -> list[int]:
    """`"<sosp><5><9><eosp>"` -> `[5, 9]`; white space around tags is allowed.

    Raises:
      UserError: `text` is not one `<sosp>...<eosp>`, or holds something else than units.
    """
    body = text.strip()
    if not (body.startswith(START) and body.endswith(END)):
        raise UserError(f"Unit text must be {START}<5><9>...{END}, got {_excerpt(body)!r}.")
    body = body[len(START) : -len(END)]
    units, position = [], 0
    while position < len(body):
        match = _UNIT.match(body, position)
        if not match:
            raise UserError(
                f"Expected a unit such as <5> between {START} and {END}, "
                f"got {_excerpt(body[position:])!r}."
            )
        units.append(int(match.group(1)))
        position = match.end()
    return units


def reduce_units(cluster_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges repeats: `[5, 5, 9]` -> units `[5, 9]`, durations `[2, 1]`.

    Args:
      cluster_ids: [T] one cluster id per frame.

    Returns:
      reduced units [N] and durations [N] in frames, int32; the durations sum to T.

    Raises:
      ValueError: `cluster_ids` has other than one axis.
    """
    cluster_ids = np.asarray(cluster_ids, np.int32)
    if cluster_ids.ndim != 1:
        raise ValueError(f"cluster_ids must be [frames], got shape {cluster_ids.shape}.")
    starts = np.flatnonzero(np.diff(cluster_ids, prepend=-1))
    durations = np.diff(starts, append=len(cluster_ids))
    return cluster_ids[starts], durations.astype(np.int32)


def _excerpt(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."
