"""Training rows for a vocoder with the units of perturbed recordings.

A recording is played faster or slower (Ko et al. 2015), which moves its pitch and formants too, and
gets the acoustics of another room and microphone. Its units are then like those of other speakers
who say the same sentence; they are stretched to the length of the original recording. A vocoder
trained on them learns to synthesize from the units of speakers whom it was not trained on.
"""

from collections.abc import Sequence

import numpy as np
import soxr
from rich.progress import track

from speechgpt_jax import manifests
from speechgpt_jax.errors import naming
from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.distortion import distort
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.encoder.targets import retimed
from speechgpt_jax.speech.vocoder.config import whole_durations
from speechgpt_jax.unit_text import reduce_units

# Recordings encoded at a time.
BATCH = 256


def checked_rows(rows: Sequence[dict]) -> list[dict]:
    """The rows {path, units, durations, ...} with their durations as whole numbers.

    Raises:
      UserError: a row lacks a field, its recording is missing or its durations don't fit its units.
    """
    manifests.check_fields(rows, ("path", "units", "durations"))
    manifests.check_recordings(rows)
    checked = []
    for row in rows:
        with naming(row["path"]):
            durations = whole_durations(row["durations"], len(row["units"]))
        checked.append({**row, "durations": durations})
    return checked


def perturb_units(
    rows: Sequence[dict], speech2unit: Speech2Unit, max_speed: float, seed: int
) -> list[dict]:
    """Rows {path, units, durations, ...} with the units of the perturbed recordings.

    Args:
      rows: recordings of `checked_rows`, with durations in frames of 20 ms.
      speech2unit: encodes the perturbed recordings.
      max_speed: speeds are drawn from [1 / max_speed, max_speed].
      seed: seed of speeds, rooms and microphones.

    Returns:
      One row for each recording that is longer than a frame after the change of speed.
    """
    check_number("max_speed", max_speed, at_least=1)
    rng, perturbed = np.random.default_rng(seed), []
    for start in track(range(0, len(rows), BATCH), "units"):
        batch = rows[start : start + BATCH]
        speeds = max_speed ** rng.uniform(-1, 1, len(batch))
        perturbed += perturb_batch(batch, speech2unit, speeds, rng)
    return perturbed


def perturb(wav: np.ndarray, speed: float, rng: np.random.Generator) -> np.ndarray:
    """wav [S] -> [S / speed]: played `speed` times as fast, in another room and microphone."""
    return distort(rng, soxr.resample(wav, SAMPLE_RATE * speed, SAMPLE_RATE))


def perturb_batch(
    rows: Sequence[dict], speech2unit: Speech2Unit, speeds: np.ndarray, rng: np.random.Generator
) -> list[dict]:
    """The rows with the units of their recordings at these speeds [rows]."""
    wavs = [perturb(load_audio(row["path"]), speed, rng) for row, speed in zip(rows, speeds)]
    perturbed = []
    for row, cluster_ids in zip(rows, speech2unit.cluster_ids(wavs)):
        if not len(cluster_ids):  # Played faster, the recording is shorter than a frame.
            continue
        units, durations = reduce_units(retimed(cluster_ids, sum(row["durations"])))
        perturbed.append(manifests.with_units(row, units, durations))
    return perturbed
