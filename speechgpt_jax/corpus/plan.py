"""The plan of a run: its rows cut into numbered shards, and its settings.

    shards = write_plan(rows, source, output, rows_per_shard=250, settings={"hubert": hubert})

The rows of a shard do not depend on the number of workers. OUTPUT/manifest.jsonl holds the rows,
OUTPUT/plan.json the settings and a digest of the rows: a run resumes only if neither has changed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np

from speechgpt_jax.corpus.beam_files import FileSystems, whole_file
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import keep_settings, refuse_foreign
from speechgpt_jax.manifests import parse_rows

# The first file that a run writes.
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows of a JSONL file, and their number among the shards.

    Attributes:
      file: the JSONL file.
      index: number of the shard, from 0.
      count: number of all shards.
      offset: byte of `file` where the rows begin.
      num_rows: None: all rows of `file`.
    """

    file: str
    index: int
    count: int
    offset: int = 0
    num_rows: int | None = None

    @property
    def number(self) -> str:
        """Part of the names of the shard's files: "00000-of-00004"."""
        return f"{self.index:05d}-of-{self.count:05d}"

    def read(self) -> list[dict]:
        """The shard's rows; a UserError if a line of a whole file is no JSON object."""
        with FileSystems.open(self.file) as file:
            if self.num_rows is None:
                return [row.fields for row in parse_rows(file, self.file)]
            file.seek(self.offset)
            return [json.loads(file.readline()) for _ in range(self.num_rows)]


def number_of_shards(file: str) -> int:
    """Number of all shards in the name of one's file: "units-00000-of-00004.jsonl" -> 4."""
    return int(file.rpartition("-of-")[2].partition(".")[0])


def write_plan(
    rows: Iterable[dict], source: str, output: str, rows_per_shard: int, settings: dict
) -> list[Shard]:
    """Writes OUTPUT/manifest.jsonl and plan.json, and returns the shards of the rows of `source`.

    Raises:
      UserError: there are no rows, `source` or another table that is not of an earlier run would be
        overwritten, or `output` was begun with other rows or settings.
    """
    if rows_per_shard < 1:
        raise UserError(f"--shard_size must be at least 1, got {rows_per_shard}.")
    file = FileSystems.join(output, "manifest.jsonl")
    if os.path.realpath(file) == os.path.realpath(source):
        raise UserError(
            f"{source} is the input, and the run's own manifest.jsonl would replace it; name"
            " another folder as --output."
        )
    refuse_foreign(output, PLAN, "manifest.jsonl", "summary.tsv")
    sizes, digest = [], hashlib.sha256()
    with whole_file(file) as manifest:
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            manifest.write(line)
            digest.update(line)
            sizes.append(len(line))
        if not sizes:
            raise UserError(f"{source} has no rows; give a file that has some.")
        settings = settings | {"rows": digest.hexdigest(), "shard_size": rows_per_shard}
        keep_settings(FileSystems.join(output, PLAN), settings)
    starts = range(0, len(sizes), rows_per_shard)
    offsets = [0, *np.cumsum(sizes).tolist()]
    return [
        Shard(file, i, len(starts), offsets[start], min(rows_per_shard, len(sizes) - start))
        for i, start in enumerate(starts)
    ]
