"""Adds to a vocoder's training rows the units that other people would give the same sentences.

    python -m tools.perturb_units --manifest=corpus/units.jsonl --split=train \\
        --output=corpus/perturbed.jsonl

Every recording is heard once more, faster or slower (Ko et al. 2015), by which its pitch and its
formants move too, and as if in another room, by another microphone. The units' times are brought
back to those of the recording. The output has
the rows of the split {path, units, durations, ...} and after them such ones, alike but for units
and durations: what a vocoder meets when it speaks for a person it has never heard.
"""

import argparse
import os
import pathlib

import numpy as np
import soxr
from rich.progress import track

from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.files import read_manifest, write_jsonl
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit
from speechgpt_jax.speech.encoder.training import distort
from speechgpt_jax.unit_text import reduce_units

BATCH = 256


def retimed(cluster_ids: np.ndarray, num_frames: int) -> np.ndarray:
    """The units of a faster or slower recording [T], stretched to `num_frames` of the original."""
    places = (np.arange(num_frames) + 0.5) * len(cluster_ids) / num_frames
    return cluster_ids[places.astype(int)]


def perturbed(
    rows: list[dict], speech2unit: Speech2Unit, speeds: np.ndarray, rng: np.random.Generator
) -> list[dict]:
    """The rows as they are heard at these speeds, one a row that then still has a frame."""
    wavs = [
        distort(rng, soxr.resample(load_audio(row["path"]), SAMPLE_RATE * speed, SAMPLE_RATE))
        for row, speed in zip(rows, speeds)
    ]
    heard = []
    for row, cluster_ids in zip(rows, speech2unit.cluster_ids(wavs)):
        if not len(cluster_ids):  # Too short, once it is faster.
            continue
        units, durations = reduce_units(retimed(cluster_ids, sum(row["durations"])))
        heard.append(row | {"units": units.tolist(), "durations": durations.tolist()})
    return heard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--manifest", required=True, type=pathlib.Path)
    parser.add_argument("--split", help="only the manifest's rows of this split")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--hubert", type=pathlib.Path, default=SHIPPED)
    parser.add_argument(
        "--widest", type=float, default=1.22, help="speeds are in [1/WIDEST, WIDEST]"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with one_line_errors():
        rows = read_manifest(args.manifest, args.split)
        speech2unit = Speech2Unit.from_pretrained(args.hubert)
        rng, more = np.random.default_rng(args.seed), []
        for start in track(range(0, len(rows), BATCH), "units"):
            batch = rows[start : start + BATCH]
            speeds = args.widest ** rng.uniform(-1, 1, len(batch))
            more += perturbed(batch, speech2unit, speeds, rng)
        write_rows(rows + more, args.output)
        print(f"{len(rows)} rows and {len(more)} of perturbed sound are in {args.output}.")


def write_rows(rows: list[dict], output: pathlib.Path) -> None:
    """The whole file or none of it; paths become relative to its folder."""
    rows = [row | {"path": os.path.relpath(row["path"], output.parent)} for row in rows]
    write_jsonl(output, rows)


if __name__ == "__main__":
    main()
