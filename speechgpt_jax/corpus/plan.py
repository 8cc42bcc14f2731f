"""The plan of a run: its rows cut into numbered shards, and its settings.

    shards = cut(rows, output, rows_per_shard=250, settings={"hubert": hubert})

The rows of a shard do not depend on the number of workers. OUTPUT/manifest.jsonl holds the rows,
OUTPUT/plan.json the settings and a digest of the rows: a run resumes only if neither has changed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable

import numpy as np

from speechgpt_jax.corpus.beam_files import FileSystems, read_lines, whole_file, write_lines
from speechgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows of a JSONL file, and their number among the shards.

    Attributes:
      file: the JSONL file.
      index: number of the shard, from 0.
      count: number of all shards.
      offset: byte of `file` where the rows begin.
      num_rows: all to the end of `file` if None.
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
        """The shard's rows."""
        with FileSystems.open(self.file) as file:
            file.seek(self.offset)
            if self.num_rows is None:
                return [json.loads(line) for line in file]
            return [json.loads(file.readline()) for _ in range(self.num_rows)]


def cut(rows: Iterable[dict], output: str, rows_per_shard: int, settings: dict) -> list[Shard]:
    """Writes OUTPUT/manifest.jsonl and plan.json, and returns the shards of the rows.

    Raises:
      UserError: there are no rows, or `output` was begun with other rows or settings.
    """
    if rows_per_shard < 1:
        raise UserError(f"--shard_size must be at least 1, got {rows_per_shard}.")
    file = FileSystems.join(output, "manifest.jsonl")
    sizes, digest = [], hashlib.sha256()
    with whole_file(file) as manifest:
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            manifest.write(line)
            digest.update(line)
            sizes.append(len(line))
        if not sizes:
            raise UserError("The input has no rows; give one that has some.")
        keep_plan(output, settings | {"rows": digest.hexdigest(), "shard_size": rows_per_shard})
    starts = range(0, len(sizes), rows_per_shard)
    offsets = [0, *np.cumsum(sizes).tolist()]
    return [
        Shard(file, i, len(starts), offsets[start], min(rows_per_shard, len(sizes) - start))
        for i, start in enumerate(starts)
    ]


def keep_plan(output: str, plan: dict) -> None:
    """Writes OUTPUT/plan.json.

    Raises:
      UserError: `output` was begun with another plan.
    """
    path = FileSystems.join(output, "plan.json")
    if not FileSystems.exists(path):
        write_lines(path, [json.dumps(plan)])
        return
    try:
        begun = json.loads("".join(read_lines(path)))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); give another --output.") from error
    for name in sorted(begun.keys() | plan.keys()):
        if begun.get(name) != plan.get(name):
            raise UserError(
                f"{output} was begun with {name} {begun.get(name)!r}, now it is "
                f"{plan.get(name)!r}; continue with the same, or give another --output."
            )
