"""Speaks sequences of units: one wav a row.

    python -m tools.synthesize --units=units.jsonl --output=wavs

Rows are {"id": "a", "units": [5, 9]}, with "durations" (in codes of 20 ms) and "speaker" (name or
index) if wanted; each becomes OUTPUT/id.wav. Rows of extract_units will do: what has no id is named
as its recording.
"""

import argparse
import json
import pathlib

import numpy as np
from rich.progress import track

from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.audio import SAMPLE_RATE, save_audio
from speechgpt_jax.speech.vocoder.vocoder import SHIPPED, UnitVocoder

# Spoken at a time.
ROWS = 16


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a JSONL file, each with an id; UserError names the line that won't do."""
    if not path.is_file():
        raise UserError(f"There is no file {path}; expected JSONL with id and units a row.")
    rows = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            row = checked(json.loads(line))
            if row["id"] in rows:
                raise UserError(f"an earlier row has the id {row['id']!r} too.")
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        rows[row["id"]] = row
    return list(rows.values())


def checked(row) -> dict:
    """A row with its id, that of a file; ValueError says what is wrong with it."""
    row = {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else {}
    if "units" not in row or not ("id" in row or "path" in row):
        raise UserError("expected a JSON object with id (or path) and units.")
    name = str(row["id"] if "id" in row else pathlib.PurePath(row["path"]).stem)
    if not name or name != pathlib.PurePath(name).name:
        raise UserError(f"expected an id that can name a file, got {name!r}.")
    for key in ("units", "durations"):
        values = row.get(key, [])
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise UserError(f"{name}: expected {key} to be a list of integers.")
    return row | {"id": name}


def batches(rows: list[dict]) -> list[list[dict]]:
    """Rows of about one length, with durations all of them or none."""
    groups = {True: [], False: []}
    for row in sorted(rows, key=lambda row: len(row["units"])):
        groups["durations" in row].append(row)
    return [
        group[start : start + ROWS]
        for group in groups.values()
        for start in range(0, len(group), ROWS)
    ]


def speak(vocoder: UnitVocoder, rows: list[dict], duration_scale: float) -> list[np.ndarray]:
    """The wav of each row of a batch; UserError names the row that won't do."""
    durations = [row["durations"] for row in rows if "durations" in row]
    speakers = [row.get("speaker", 0) for row in rows]
    try:
        units = [row["units"] for row in rows]
        return vocoder.synthesize(units, durations or None, speakers, duration_scale)
    except ValueError as error:
        if len(rows) == 1:
            raise UserError(f"{rows[0]['id']}: {error}") from error
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
        samples = 0
        for batch in track(batches(rows), "speaking"):
            for row, wav in zip(batch, speak(vocoder, batch, args.duration_scale)):
                save_audio(args.output / f"{row['id']}.wav", wav)
                samples += len(wav)
        print(f"{len(rows)} wavs, {samples / SAMPLE_RATE:.1f} s in all, are in {args.output}.")


if __name__ == "__main__":
    main()
