"""Manifests: JSONL files, one recording a row, with at least `path`, `text`, `speaker`, `split`."""

import json
import pathlib


def read_manifest(path: str | pathlib.Path, split: str | None = None) -> list[dict]:
    """The rows (of one split), their `path`s made relative to the working folder, not the file.

    Raises:
      ValueError: a row is not JSON or names no `path`.
    """
    path = pathlib.Path(path)
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            row["path"] = str(path.parent / row["path"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: expected a JSON object with `path`: {error}"
            ) from error
        if split is None or row.get("split") == split:
            rows.append(row)
    return rows
