"""Answers to all rows of a file, in numbered shards, for several processes; resumable.

    answer_shards(rows, "answers", answer, rows_per_shard=256, at_once=32, settings={...})

writes answers/answers-00000-of-00004.jsonl and so on: the rows in their order, with the fields that
`answer(row)` returns. A shard appears when all of it is answered. The same call, after a kill, goes
on with the missing shards.
"""

import concurrent.futures
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import keep_settings, names_in
from speechgpt_jax.manifests import read_rows, write_jsonl

SETTINGS = "settings.json"
_SHARD = "answers-{:05d}-of-{:05d}.jsonl"


def answer_shards(
    rows: Sequence[dict],
    folder: str | os.PathLike,
    answer: Callable[[dict], dict],
    *,
    rows_per_shard: int,
    at_once: int,
    settings: Mapping[str, Any],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Answers the rows of this process's shards that aren't there yet.

    Args:
      rows: the questions.
      folder: gets the shards, and the settings with which they were made.
      answer: called in several threads at the same time; an error ends the call.
      rows_per_shard: rows of a shard, but for the last one.
      at_once: number of rows that are answered at the same time.
      settings: what the answers depend on; they must be the same when a killed call is resumed.
      share: index of this process, and the number of processes that share the work.

    Raises:
      UserError: `folder` has shards that were made with other settings.
    """
    index, count = share
    folder = epath.Path(folder)
    digest = hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()
    settings = {
        **settings,
        "rows": len(rows),
        "sha256 of the rows": digest,
        "rows_per_shard": rows_per_shard,
    }
    keep_settings(folder / SETTINGS, settings, writes=index == 0)
    starts = range(0, len(rows), rows_per_shard)
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for number in range(index, len(starts), count):
            file = folder / _SHARD.format(number, len(starts))
            if not file.exists():
                shard = rows[starts[number] : starts[number] + rows_per_shard]
                write_jsonl(file, map(dict.__or__, shard, pool.map(answer, shard)))


def read_answers(folder: str | os.PathLike) -> list[dict]:
    """The rows of all shards, in their order.

    Raises:
      UserError: there are none, or some are missing.
    """
    folder = epath.Path(folder)
    names = [name for name in names_in(folder) if re.fullmatch(r"answers-.*-of-.*\.jsonl", name)]
    if not names:
        raise UserError(f"{folder} has no answers; expected the folder of `infer --answers`.")
    for name in names:
        if not re.fullmatch(r"answers-\d+-of-\d+\.jsonl", name):
            raise UserError(f"{folder / name} is no shard of answers; remove it.")
    count = int(names[0].removesuffix(".jsonl").rpartition("-")[2])
    missing = {_SHARD.format(i, count) for i in range(count)} - set(names)
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {count} shards, such as {min(missing)}; give the"
            " same infer command again."
        )
    return [row.fields for name in names for row in read_rows(folder / name)]
