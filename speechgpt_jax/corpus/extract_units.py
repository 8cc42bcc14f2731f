"""Recordings -> units by HuBERT and k-means; tools/extract_units.py is the command."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from speechgpt_jax import files, manifests
from speechgpt_jax.corpus import plan, shards
from speechgpt_jax.corpus.beam_files import (
    FileSystems,
    absolute,
    find_files,
    read_table,
    reading,
)
from speechgpt_jax.corpus.sound import SoundOrReason, in_advance, load
from speechgpt_jax.corpus.summary import REJECTS, print_summary
from speechgpt_jax.errors import UserError
from speechgpt_jax.malloc import keep_freed_memory
from speechgpt_jax.speech.audio import SAMPLE_RATE, SUFFIXES
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.unit_text import reduce_units

TABLES = (".jsonl", ".tsv", ".csv")

# Reduced units [N] and durations [N] in frames of 20 ms, or why there are none.
Encoded = tuple[np.ndarray, np.ndarray] | str


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
      hubert: folder of a HuBERT and its centroids.
      shard_size: recordings per shard.
      dtype: type of the factors of matrix products, "float32" or "bfloat16".
      batch_seconds: seconds of sound encoded together.
      beam_arguments: Beam's own flags.

    Raises:
      UserError: Beam doesn't know a flag, the output can't be written, or there is no HuBERT,
        recording or manifest.
    """
    options = shards.pipeline_options(beam_arguments)
    source, output, hubert = absolute(source), absolute(output), absolute(hubert)
    files.check_writable_folder(output)
    check_hubert(hubert)
    skipped = ""
    if source.lower().endswith(TABLES):
        table = read_table(source, ("path",))
        rows = (manifests.with_full_paths(row.fields, source) for row in table)
    else:
        rows, skipped = find_recordings(source, output)
    work = plan.write_plan(rows, source, output, shard_size, {"hubert": hubert, "dtype": dtype})
    if skipped:
        print(skipped)
    job = shards.Job(
        name="extract_units",
        kinds=("units",),
        make_worker=functools.partial(Extractor.from_pretrained, hubert, batch_seconds, dtype),
        measure=measure,
    )
    print_summary(shards.run(job, work, output, options), output)
    if skipped:
        print(skipped)


def check_hubert(folder: str) -> None:
    """Raises a UserError if the folder lacks a HuBERT or its centroids."""
    for name in ("config.json", "model.safetensors", "kmeans.safetensors"):
        with reading(folder):
            exists = FileSystems.exists(FileSystems.join(folder, name))
        if not exists:
            raise UserError(f"{folder} has no {name}; expected a folder of HuBERT and centroids.")


def find_recordings(folder: str, output: str) -> tuple[list[dict], str]:
    """Finds the recordings under `folder`, except in a folder `output` within it.

    Returns:
      a row for each recording, sorted by path, and a sentence that counts the other files by
      suffix, "" if there are none.

    Raises:
      UserError: the folder doesn't exist or has no recording.
    """
    if not files.is_remote(folder) and not os.path.exists(folder):
        raise UserError(f"--input={folder} does not exist; expected a folder or a manifest.")
    paths = find_files(folder, "**")
    if output.startswith(f"{folder}/"):
        paths = [path for path in paths if not path.startswith(f"{output}/")]
    others = collections.Counter() if files.is_remote(folder) else _links(folder)
    rows = []
    for path in paths:
        name = pathlib.PurePath(path)
        if any(part.startswith(".") for part in name.relative_to(folder).parts):
            others["hidden"] += 1
        elif name.suffix.lower() in SUFFIXES:
            rows.append({"path": path})
        else:
            others[name.suffix.lower() or "without a suffix"] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    kinds = kinds.encode(errors="backslashreplace").decode()  # Names need not be UTF-8.
    if not rows:
        held = f" (it has {kinds})" if kinds else ""
        raise UserError(
            f"--input={folder} has no recording{held}; give a folder that has some (.wav, .flac,"
            f" .mp3, .m4a, .opus, ...), or a manifest named {', '.join(TABLES)}."
        )
    total = others.total()
    return rows, f"{total} file{'s' * (total > 1)} skipped: {kinds}." if others else ""


def _links(folder: str) -> collections.Counter[str]:
    """Counts the links that the search doesn't follow: to folders, and to nothing."""
    found: collections.Counter[str] = collections.Counter()
    for parent, folders, names in os.walk(folder):
        paths = [os.path.join(parent, name) for name in folders + names]
        for path in filter(os.path.islink, paths):
            if os.path.isdir(path):
                found["linked folder (give it as --input of its own)"] += 1
            elif not os.path.exists(path):
                found["broken link"] += 1
    return found


def measure(line: str) -> dict[str, int]:
    """Lengths of an output row, for the summary."""
    row = json.loads(line)
    return {"frames": sum(row["durations"]), "units": len(row["units"])}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Rows with a `path` -> lines of JSON with `units` and `durations` too, and rejects."""

    speech2unit: Speech2Unit
    batch_seconds: int

    @classmethod
    def from_pretrained(
        cls, hubert: str, batch_seconds: int, dtype: str = "float32"
    ) -> "Extractor":
        """Loads the HuBERT and the centroids of the folder `hubert`."""
        keep_freed_memory()
        return cls(Speech2Unit.from_pretrained(hubert, dtype), batch_seconds)

    def __call__(self, rows: list[dict]) -> dict[str, list[str]]:
        lines = {"units": [], REJECTS: []}
        sound = in_advance(load, [row["path"] for row in rows])
        for row, encoded in zip(rows, self.encode(sound)):
            if isinstance(encoded, str):
                lines[REJECTS].append(json.dumps(row | {"reason": encoded}))
            else:
                lines["units"].append(json.dumps(manifests.with_units(row, *encoded)))
        return lines

    def encode(self, sound: Iterable[SoundOrReason]) -> list[Encoded]:
        """Units of each item, while the next batch is loaded."""
        batches = in_batches(sound, self.batch_seconds * SAMPLE_RATE)
        encode = functools.partial(encode_batch, self.speech2unit)
        return [item for batch in in_advance(encode, batches, 1, ahead=1) for item in batch]


def in_batches(sound: Iterable[SoundOrReason], samples: int) -> Iterator[list[SoundOrReason]]:
    """The items in their order, in batches of at most `samples` or of a single longer item."""
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


def encode_batch(speech2unit: Speech2Unit, batch: list[SoundOrReason]) -> list[Encoded]:
    """Units of each item; an item that is a reason is returned as it is."""
    cluster_ids = iter(speech2unit.cluster_ids([x for x in batch if not isinstance(x, str)]))
    return [x if isinstance(x, str) else _reduce(x, next(cluster_ids)) for x in batch]


def _reduce(wav: np.ndarray, cluster_ids: np.ndarray) -> Encoded:
    if not len(cluster_ids):
        return f"{len(wav)} samples are shorter than a frame of units"
    return reduce_units(cluster_ids)
