"""Training rows for a vocoder's new voice, with the units that a language model writes.

A language model that learned to write the units of one voice is to speak with another. The vocoder
learns that from recordings of the new voice with two kinds of units: their own, and those of the
reference, the same text in the voice whose units the model writes, laid over the recording's time.
"""

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from speechgpt_jax.corpus.alignment import warp
from speechgpt_jax.manifests import with_units
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.unit_text import reduce_units

# Recordings encoded at a time, and as many references.
BATCH = 128


def reference_units(rows: Sequence[dict], speech2unit: Speech2Unit) -> list[dict]:
    """Rows {path, reference, ...} -> two of each, {path, units, durations, ...}.

    Durations are in frames of 20 ms. The first row has the units of the recording, the second
    those of the reference.
    """
    centroids, found = speech2unit.centroids, []
    assert centroids is not None, "this Speech2Unit has no centroids"
    for start in track(range(0, len(rows), BATCH), "units"):
        batch = rows[start : start + BATCH]
        paths = [row[name] for name in ("path", "reference") for row in batch]
        features = speech2unit.features([load_recording(path) for path in paths])
        for row, own, reference in zip(batch, features, features[len(batch) :]):
            for frames in (own, reference[warp(own, reference)]):
                units, durations = reduce_units(np.asarray(kmeans.assign(frames, centroids)))
                about = {name: row[name] for name in row if name != "reference"}
                found.append(with_units(about, units, durations))
    return found
