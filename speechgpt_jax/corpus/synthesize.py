"""Synthesis of many unit sequences: one wav per row of a manifest."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from etils import epath
from rich.progress import track

from speechgpt_jax import manifests
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.audio import SAMPLE_RATE, save_audio
from speechgpt_jax.speech.vocoder.config import VocoderConfig, check_durations, check_total
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, load_config

# Rows synthesized at a time.
BATCH = 16


def synthesize(
    units: str | os.PathLike,
    vocoder: str | os.PathLike,
    output: str | os.PathLike,
    duration_scale: float = 1.0,
) -> tuple[int, float]:
    """Writes `output`/ID.wav for each row of the manifest `units`.

    Args:
      units: JSONL of {id, units} and, if wanted, durations (in codes of 20 ms) and speaker (name or
        index). Without an id, the file is named like the recording in `path`.
      vocoder: folder of the vocoder.
      output: folder.
      duration_scale: 2 halves the speed.

    Returns:
      Number of wavs and their total length in seconds.

    Raises:
      UserError: a row doesn't fit the vocoder; all rows are checked before any is synthesized.
    """
    check_number("duration_scale", duration_scale, at_least=0.01, at_most=100)
    rows = read_units(units, output, load_config(vocoder), duration_scale)
    model = UnitVocoder.from_pretrained(vocoder)
    samples = 0
    for batch in track(batches(rows), "synthesizing"):
        durations = [row["durations"] for row in batch if "durations" in row]
        wavs = model.synthesize(
            [row["units"] for row in batch],
            durations or None,
            [row["speaker"] for row in batch],
            duration_scale,
        )
        for row, wav in zip(batch, wavs):
            save_audio(epath.Path(output) / f"{row['id']}.wav", wav)
            samples += len(wav)
    return len(rows), samples / SAMPLE_RATE


def read_units(
    path: str | os.PathLike, output: str | os.PathLike, config: VocoderConfig, duration_scale: float
) -> list[dict]:
    """Rows of a manifest, each {id, units, speaker} and perhaps durations.

    Raises:
      UserError: a vocoder of this config can't synthesize a row, which the message names, or a wav
        in the folder `output` would replace a recording of the manifest.
    """
    rows, recordings = {}, set()
    for place, fields in manifests.read_rows(path):
        with naming(place):
            row = checked_row(fields, config, duration_scale)
        if row["id"] in rows:
            raise UserError(f"{place}: an earlier row has the id {row['id']!r} too.")
        rows[row["id"]] = row
        if isinstance(fields.get("path"), str):
            recordings.add(os.path.realpath(manifests.resolve(fields["path"], path)))
    if not rows:
        raise UserError(f"{path} has no rows; expected JSONL of id and units.")
    for name in rows:
        wav = os.path.join(output, f"{name}.wav")
        if os.path.realpath(wav) in recordings:
            raise UserError(
                f"{wav} is a recording of the manifest and would be replaced; name another folder"
                " as --output."
            )
    return list(rows.values())


def checked_row(fields: Mapping, config: VocoderConfig, duration_scale: float) -> dict:
    """{id, units, speaker} and perhaps durations of a row.

    Raises:
      UserError: a field is missing or wrong.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    if "units" not in fields or not ("id" in fields or "path" in fields):
        raise UserError("expected a JSON object with id (or path) and units.")
    name = fields.get("id")
    if name is None:
        if not isinstance(fields["path"], str):
            raise UserError(f"expected a path that is text, got {fields['path']!r}.")
        name = pathlib.PurePath(fields["path"]).stem
    is_name = isinstance(name, str | int) and not isinstance(name, bool)
    name = str(name) if is_name else name
    if (
        not is_name
        or not name.isprintable()
        or len(name.encode()) > 200
        or name in ("", ".", "..")
        or "/" in name
    ):
        raise UserError(f"expected an id that can name a file, got {name!r}.")
    row = {"id": name, "units": fields["units"], "speaker": fields.get("speaker", 0)}
    if "durations" in fields:
        row["durations"] = fields["durations"]
    for key in row.keys() - {"id", "speaker"}:
        values = row[key]
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise UserError(f"{name}: expected {key} to be a list of integers.")
    try:
        config.speaker_index(row["speaker"])
        config.check_units([unit for unit in row["units"] if unit >= 0])
        if "durations" in row:
            durations = check_durations(row["durations"], len(row["units"]))
            check_total(durations.sum(dtype=float) * duration_scale)
    except UserError as error:
        # The name may be so short that `naming` would find it in the message.
        raise UserError(f"{name}: {error}") from error
    return row


def batches(rows: Sequence[dict]) -> list[list[dict]]:
    """Batches of rows of similar length; in each batch all rows have durations, or none has."""
    groups = {True: [], False: []}
    for row in sorted(rows, key=lambda row: len(row["units"])):
        groups["durations" in row].append(row)
    return [
        group[start : start + BATCH]
        for group in groups.values()
        for start in range(0, len(group), BATCH)
    ]
