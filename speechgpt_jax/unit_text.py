"""Units <-> unit text: `[661, 987]` <-> `<sosp><661><987><eosp>`."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

START, END = "<sosp>", "<eosp>"

# A unit in a text.
UNIT = re.compile(r"<([0-9]+)>")


def units_to_text(units: Iterable[int]) -> str:
    """`[5, 9]` -> `"<sosp><5><9><eosp>"`."""
    return START + "".join(f"<{int(unit)}>" for unit in units) + END


def units_in(text: str) -> list[int]:
    """`"<sosp><5><9><eosp>"` -> `[5, 9]`; what stands between the units is skipped."""
    return [int(unit) for unit in UNIT.findall(text)]


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
