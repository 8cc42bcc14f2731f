"""Speaks sequences of units: one wav a row.

    python -m tools.synthesize --units=units.jsonl --output=wavs

Rows are {"id": "a", "units": [5, 9]}, with "durations" (in codes of 20 ms) and "speaker" (name or
index) if wanted; each becomes OUTPUT/id.wav.
"""

import argparse
import json
import pathlib

import numpy as np
from rich.progress import track

from speechgpt_jax.gin_utils import one_line_errors
from speechgpt_jax.speech.audio import save_audio
from speechgpt_jax.speech.vocoder import SHIPPED, UnitVocoder

# Spoken at a time.
ROWS = 16


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a JSONL file; ValueError naming the line that is no row with an id and units."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}; expected JSONL with id and units a row.")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append(row | {"id": str(row["id"]), "units": list(row["units"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: expected a JSON object with id and units: {error}"
            ) from error
    return rows


def batches(rows: list[dict]) -> list[list[dict]]:
    """Rows of about one length, with durations all of them or none."""
    groups = {True: [], False: []}
    for row in sorted(rows, key=lambda row: len(row["units"])):
        groups[row.get("durations") is not None].append(row)
    return [
        group[start : start + ROWS]
        for group in groups.values()
        for start in range(0, len(group), ROWS)
    ]


def speak(vocoder: UnitVocoder, rows: list[dict], duration_scale: float) -> list[np.ndarray]:
    """The wav of each row of a batch; ValueError names the row that won't do."""
    durations = [row["durations"] for row in rows if row.get("durations") is not None]
    speakers = [row.get("speaker", 0) for row in rows]
    try:
        units = [row["units"] for row in rows]
        return vocoder.synthesize(units, durations or None, speakers, duration_scale)
    except ValueError as error:
        if len(rows) == 1:
            raise ValueError(f"{rows[0]['id']}: {error}") from error
        return [wav for row in rows for wav in speak(vocoder, [row], duration_scale)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--units", required=True, type=pathlib.Path)
    parser.add_argument("--vocoder", default=SHIPPED, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--duration_scale", type=float, default=1.0, help="2: half the speed")
    args = parser.parse_args()
    with one_line_errors():
        rows, vocoder = read_rows(args.units), UnitVocoder.from_pretrained(args.vocoder)
        args.output.mkdir(parents=True, exist_ok=True)
        for batch in track(batches(rows), "speaking"):
            for row, wav in zip(batch, speak(vocoder, batch, args.duration_scale)):
                save_audio(args.output / f"{row['id']}.wav", wav)
        print(f"{len(rows)} wavs are in {args.output}.")


if __name__ == "__main__":
    main()
