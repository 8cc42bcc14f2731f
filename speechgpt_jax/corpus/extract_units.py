"""Recordings -> units by HuBERT and k-means: the work of tools/extract_units.py."""

import dataclasses
import functools
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from speechgpt_jax.corpus import shards
from speechgpt_jax.corpus.shards import FileSystems
from speechgpt_jax.errors import UserError
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.unit_text import reduce_units

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

Item = TypeVar("Item")
Result = TypeVar("Result")
Sound = np.ndarray | str  # float32 [S] at 16 kHz, or why there is none
# Reduced units [N] and durations [N] in frames of 20 ms, or why there are none.
Heard = tuple[np.ndarray, np.ndarray] | str


def extract_units(
    source: str,
    output: str,
    hubert: str,
    *,
    shard_size: int,
    dtype: str,
    batch_seconds: int,
    beam_arguments: Sequence[str] = (),
) -> None:
    """Writes the units of a folder's or a manifest's recordings into the folder `output`.

    Args:
      source: folder of recordings, or manifest.
      output: folder; what an earlier run finished there is kept.
      hubert: folder of HuBERT and centroids.
      shard_size: recordings per shard.
      dtype: of matrix products, "float32" or "bfloat16".
      batch_seconds: seconds of sound encoded together.
      beam_arguments: Beam's own flags.
    """
    options = shards.pipeline_options(beam_arguments)
    output, hubert = absolute(output), absolute(hubert)
    rows = find_recordings(absolute(source))
    work = shards.cut(rows, output, shard_size, {"hubert": hubert, "dtype": dtype})
    job = shards.Job(
        name="extract_units",
        kinds=("units",),
        make_worker=functools.partial(Extractor.from_pretrained, hubert, batch_seconds, dtype),
        measure=measure,
    )
    shards.print_summary(shards.run(job, work, output, options), output)


def absolute(path: str) -> str:
    """A path that means the same in whatever folder a worker runs."""
    return path if "://" in path else os.path.abspath(path)


def find_recordings(source: str) -> Iterator[dict]:
    """The rows of a manifest, or one a recording of a folder, sorted by name.

    Raises:
      UserError: there is no such manifest, a line of it won't do, or the folder has no recording.
    """
    if source.endswith((".jsonl", ".tsv")):
        yield from read_rows(source)
        return
    paths = [p for p in shards.find_files(source, "**") if p.lower().endswith(SUFFIXES)]
    if not paths:
        raise UserError(
            f"--input={source} has no {', '.join(SUFFIXES)} file; give a folder that has some, or "
            "a manifest named .jsonl or .tsv."
        )
    yield from ({"path": path} for path in paths)


def read_rows(manifest: str) -> Iterator[dict]:
    folder = FileSystems.split(manifest)[0]
    for row in shards.read_table(manifest, ("path",)):
        if "://" not in row["path"]:
            row["path"] = FileSystems.join(folder, row["path"])
        yield row


def measure(line: str) -> dict[str, int]:
    row = json.loads(line)
    return {"frames": sum(row["durations"]), "units": len(row["units"])}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Rows with a `path` -> lines with `units` and `durations` too, and lines of what has none."""

    speech2unit: Speech2Unit
    batch_seconds: int

    @classmethod
    def from_pretrained(
        cls, hubert: str, batch_seconds: int, dtype: str = "float32"
    ) -> "Extractor":
        keep_freed_memory()
        return cls(Speech2Unit.from_pretrained(hubert, dtype), batch_seconds)

    def __call__(self, rows: list[dict]) -> dict[str, list[str]]:
        lines = {"units": [], shards.REJECTS: []}
        sound = in_advance(load, [row["path"] for row in rows])
        for row, heard in zip(rows, self.encode(sound)):
            if isinstance(heard, str):
                lines[shards.REJECTS].append(json.dumps(row | {"reason": heard}))
            else:
                units, durations = (values.tolist() for values in heard)
                lines["units"].append(json.dumps(row | {"units": units, "durations": durations}))
        return lines

    def encode(self, sound: Iterable[Sound]) -> list[Heard]:
        """What is heard of each item; the next batch is read meanwhile."""
        batches = in_batches(sound, self.batch_seconds * SAMPLE_RATE)
        hear_batch = functools.partial(hear, self.speech2unit)
        return [item for batch in in_advance(hear_batch, batches, 1, ahead=1) for item in batch]


def in_batches(sound: Iterable[Sound], samples: int) -> Iterator[list[Sound]]:
    """The items in their order, at most so many samples together: memory stays flat."""
    batch, filled = [], 0
    for item in sound:
        size = 0 if isinstance(item, str) else len(item)
        if batch and filled + size > samples:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += size
    if batch:
        yield batch


def hear(speech2unit: Speech2Unit, batch: list[Sound]) -> list[Heard]:
    cluster_ids = iter(speech2unit.cluster_ids([x for x in batch if not isinstance(x, str)]))
    return [item if isinstance(item, str) else heard(item, next(cluster_ids)) for item in batch]


def heard(wav: np.ndarray, cluster_ids: np.ndarray) -> Heard:
    if not len(cluster_ids):
        return f"{len(wav)} samples are shorter than a frame of units"
    return reduce_units(cluster_ids)


def load(path: str) -> Sound:
    try:
        with FileSystems.open(path) as file:
            source = io.BytesIO(file.read())
        source.name = path
        return load_audio(source)
    except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return " ".join(str(error).split())


def in_advance(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 8, ahead: int = 16
) -> Iterator[Result]:
    """`map(function, items)`, in threads that are so many items ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
