"""SeqIO data sources: files of records, and records held in memory.

Each epoch is shuffled by the position of records, so a saved position holds no records.
"""

import abc
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data import records
from speechgpt_jax.data.blocks import IN_ORDER, Format, Windows, file_format
from speechgpt_jax.data.checked import FOLDER, LISTED, CheckedFile, check_files
from speechgpt_jax.data.records import Check, Texts
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import read_json
from speechgpt_jax.shipped import ASSETS

logger = logging.getLogger(__name__)

DEMO_CORPUS = ASSETS / "corpus"

_ALL = 1 << 30

# Size of the shuffle buffer of sources that can't be read in any order.
SHUFFLE_BUFFER = 10_000

# Records are parsed in batches, since most of the cost is per call.
_PARSE_BATCH = 32

_PARSERS = {
    "jsonl": records.parse_json,
    "txt": records.parse_lines,
    "tfrecord": records.parse_examples,
    "array_record": records.parse_examples,
}


@contextlib.contextmanager
def read_errors(path: object) -> Iterator[None]:
    """Turns TensorFlow's errors, such as an unknown file system, into a UserError about `path`."""
    try:
        yield
    except tf.errors.OpError as error:
        raise UserError(f"{path} can't be read: {error.message}") from error


class _Files(seqio.DataSource):
    """Files, of which each reader has a share; they are shuffled while they are read."""

    def __init__(self, splits: Iterable[str]):
        super().__init__(splits=tuple(splits), performs_internal_shuffling=True)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    @tf.autograph.experimental.do_not_convert
    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        files = self.list_shards(split)
        if shard_info:
            files = files[shard_info.index :: shard_info.num_shards]
        is_share = shard_info is not None and shard_info.num_shards > 1
        return self._read(split, files, shuffle, seed, is_share=is_share)

    @abc.abstractmethod
    def _read(
        self, split: str, files: list[str], shuffle: bool, seed: int | None, *, is_share: bool
    ) -> tf.data.Dataset:
        """The records of `files`, which are a share of the split's files or all of them."""


class RecordFiles(_Files):
    """Text fields of records in files of one format, on any path that TensorFlow reads (gs:// too).

    .jsonl                     one object per line; a list of units becomes unit text
    .txt                       one line per record, its only field
    .tfrecord, .array_record   tf.train.Example; ArrayRecord on local disks only

    Names may end in `-00000-of-00008`; all but ArrayRecord may be compressed (.gz).

    In .jsonl and .txt, byte order marks and blank lines are skipped; only "\\n" ends a line.

    All records of this reader are read and checked before the first one is returned; the result is
    remembered beside the files. Bad records raise a UserError or, with `on_error="skip"`, are
    counted, logged and left out. Records are shuffled within each epoch (see `blocks.Windows`).

    Args:
      split_to_filepattern: split -> file pattern, or list of files.
      fields: names of the fields.
      check: finds bad records.
      on_error: "stop" or "skip".
    """

    def __init__(
        self,
        split_to_filepattern: Mapping[str, str | Sequence[str]],
        fields: Sequence[str],
        check: Check,
        on_error: str = "stop",
    ):
        if on_error not in ("stop", "skip"):
            raise UserError(f"on_error must be 'stop' or 'skip', got {on_error!r}.")
        super().__init__(split_to_filepattern)
        self._split_to_filepattern = dict(split_to_filepattern)
        self._fields = tuple(fields)
        self._check = check
        self._on_error = on_error

    def list_shards(self, split: str) -> list[str]:
        pattern = self._split_to_filepattern[split]
        with read_errors(pattern):
            found = tf.io.gfile.glob(pattern)
        files = sorted(file for file in found if os.path.basename(file) != FOLDER)
        if not files:
            raise UserError(f"No file matches {pattern} (split {split!r}); check the path.")
        return files

    def _read(
        self, split: str, files: list[str], shuffle: bool, seed: int | None, *, is_share: bool
    ) -> tf.data.Dataset:
        format_ = file_format(files)
        checked = self._checked(files, format_)
        if not checked and not is_share:
            raise UserError(f"The files of split {split!r} have no records, such as {files[0]}.")

        def good_texts(batch: tf.Tensor) -> Texts:
            texts, problems = self._parse(batch, format_)
            return {field: tf.boolean_mask(text, problems == "") for field, text in texts.items()}

        return _read_batches(checked, format_, shuffle, seed).map(good_texts).unbatch()

    def _parse(self, batch: tf.Tensor, format_: Format) -> tuple[Texts, tf.Tensor]:
        """Fields and problems of a batch of records [B]."""
        blank = tf.zeros_like(batch)
        if format_.is_lines:
            batch, blank = records.skip_blank(batch)
        texts, problems = _PARSERS[format_.name](batch, self._fields)
        found = self._check.find_problems(texts)
        return texts, records.first_problem([blank, problems, found])

    def _checked(self, files: list[str], format_: Format) -> list[CheckedFile]:
        """Files that have records. Logs the files and records that are left out.

        Raises:
          UserError: a file or record is bad and on_error is "stop", or all records are bad.
        """

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def problems_of(batch: tf.Tensor) -> tf.Tensor:
            return self._parse(batch, format_)[1]

        # Otherwise each thread that calls it would trace it.
        traced = problems_of.get_concrete_function()

        readable, problems, total, num_bad, good, damaged = [], [], 0, 0, 0, 0
        check = f"{self._check.name}: {', '.join(self._fields)}"
        found = check_files(
            files, format_, check, lambda batch: traced(tf.constant(batch, tf.string)).numpy()
        )
        for file, checked in zip(files, found):
            if isinstance(checked, UserError):
                problems.append(str(checked))
                damaged += 1
                continue
            if checked.num_records:
                readable.append(checked)
            else:
                logger.warning("%s has no records.", file)
            total += checked.num_records
            num_bad += checked.num_bad
            good += checked.num_records - checked.num_bad
            problems += [f"{file}, {problem}" for problem in checked.problems]
        if problems:
            self._report(problems, num_bad, total, damaged)
            if not good:
                raise UserError(f"None of the records can be used: {problems[0]}.")
        return readable

    def _report(self, problems: list[str], num_bad: int, total: int, damaged: int) -> None:
        if self._on_error == "stop":
            raise UserError(
                f"{problems[0]}. {num_bad} of {total} records are bad and {damaged} files can't be"
                " read; correct them, or bind on_error = 'skip' to leave them out."
            )
        share = 100 * num_bad / max(total, 1)
        logger.warning(
            "Left out %d of %d records (%.2f %%), and %d files that can't be read:",
            *(num_bad, total, share, damaged),
        )
        for problem in problems[:LISTED]:
            logger.warning("  %s", problem)
        if (num_problems := num_bad + damaged) > LISTED:
            logger.warning("  and %d more", num_problems - LISTED)


def _read_batches(
    files: Sequence[CheckedFile], format_: Format, shuffle: bool, seed: int | None
) -> tf.data.Dataset:
    """Batches [B] of records as bytes, one epoch."""
    windows = Windows([block for file in files for block in file.blocks], format_)

    def read(epoch, start) -> np.ndarray:
        found = windows.read(int(epoch), int(start), int(start) + _PARSE_BATCH)
        return np.array(found, object)

    def read_batch(epoch: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(read, [epoch, start], tf.string, stateful=False)
        return tf.ensure_shape(found, [None])

    starts = tf.data.Dataset.range(0, windows.num_records, _PARSE_BATCH)
    # Without parallel calls nothing is in flight that would have to be saved.
    return _with_epoch(starts, shuffle, seed).map(read_batch)


def _with_epoch(positions: tf.data.Dataset, shuffle: bool, seed: int | None) -> tf.data.Dataset:
    """Pairs (epoch, position); `epoch` is a new random number in each repetition of the dataset."""
    if not shuffle:
        return positions.map(lambda position: (tf.constant(IN_ORDER, tf.int64), position))
    epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    return epochs.flat_map(lambda epoch: positions.map(lambda position: (epoch, position)))


class CachedExamples(_Files):
    """The examples of a task that `seqio_cache_tasks` wrote, read in any order.

    Args:
      task: a task whose `cache_dir` is known.
    """

    def __init__(self, task: seqio.Task):
        super().__init__(task.splits)
        self._folder = task.cache_dir

    def list_shards(self, split: str) -> list[str]:
        prefix = seqio.get_cached_tfrecord_prefix(self._folder, split)
        return sorted(tf.io.gfile.glob(f"{prefix}-*"))

    def _read(
        self, split: str, files: list[str], shuffle: bool, seed: int | None, *, is_share: bool
    ) -> tf.data.Dataset:
        checked = []
        for found in check_files(files, _CACHE):
            if isinstance(found, UserError):
                raise found
            checked.append(found)
        features = read_json(seqio.get_cached_info_path(self._folder, split))["features"]
        types = {name: tf.as_dtype(feature["dtype"]) for name, feature in features.items()}
        description = {name: _stored(**feature) for name, feature in features.items()}

        def parse(batch: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
            examples = tf.io.parse_example(batch, description)
            return {name: tf.cast(x, types[name]) for name, x in examples.items()}

        return _read_batches(checked, _CACHE, shuffle, seed).map(parse).unbatch()


_CACHE = Format("tfrecord", gz=False)


def _stored(shape: Sequence[int | None], dtype: str) -> tf.io.FixedLenFeature | tf.io.RaggedFeature:
    """Parser of a feature as SeqIO writes it: int32 and bool are int64."""
    stored = tf.int64 if dtype in ("int32", "bool") else tf.as_dtype(dtype)
    if None not in shape:
        return tf.io.FixedLenFeature(shape, stored)
    sizes = [tf.io.RaggedFeature.UniformRowLength(size) for size in shape[1:]]
    return tf.io.RaggedFeature(stored, partitions=sizes)


class RecordsInMemory(seqio.DataSource):
    """A small set of tf.train.Example records, read at once from GZIP TFRecord files.

    It shuffles indices, not records: each epoch is a new permutation of all records, and the
    position saved with a checkpoint is small.
    """

    def __init__(
        self,
        split_to_file: Mapping[str, str],
        feature_description: Mapping[str, tf.io.FixedLenFeature | tf.io.RaggedFeature],
    ):
        super().__init__(splits=tuple(split_to_file), performs_internal_shuffling=True)
        self._split_to_file = dict(split_to_file)
        self.feature_description = dict(feature_description)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [self._split_to_file[split]]

    @tf.autograph.experimental.do_not_convert
    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        records = read_records(self._split_to_file[split])
        index, num_shards = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        own = len(range(index, len(records), num_shards))

        def record(epoch: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
            if shuffle:
                seeds = tf.stack([epoch, 0])
                position = tf.random.experimental.index_shuffle(position, seeds, own - 1)
            example = records[position * num_shards + index]
            return tf.io.parse_single_example(example, self.feature_description)

        positions = _with_epoch(tf.data.Dataset.range(own), shuffle, seed)
        return positions.map(record, num_parallel_calls=tf.data.AUTOTUNE)


def read_records(file: str) -> tf.Tensor:
    """All records [N] of a GZIP TFRecord file."""
    with read_errors(file):
        exists = tf.io.gfile.exists(file)
    if not exists:
        raise UserError(f"No records at {file}; expected a GZIP TFRecord file.")
    dataset = tf.data.TFRecordDataset(file, compression_type="GZIP")
    try:
        return next(iter(dataset.batch(_ALL)))
    except StopIteration:
        raise UserError(f"{file} has no records; write it again.") from None
    except tf.errors.OpError as error:
        raise UserError(
            f"{file} is not a GZIP TFRecord file, or damaged: {error.message}"
        ) from error
