"""SeqIO data sources: files of records, and records held in memory."""

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordReader

from speechgpt_jax.data import records
from speechgpt_jax.data.records import Check, Texts
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import ASSETS

logger = logging.getLogger(__name__)

DEMO_CORPUS = ASSETS / "corpus"

_ALL = 1 << 30

# Size of shuffle buffers, in records or in examples of cached tasks.
SHUFFLE_BUFFER = 10_000

# Records are parsed in batches, since most of the cost is per call.
_PARSE_BATCH = 64

# units-00000-of-00004.jsonl, dialogues.jsonl.gz, speech_instruct-train.tfrecord-00000-of-00001
_FORMAT = re.compile(r"\.(jsonl|txt|tfrecord|array_record)(?:-\d+-of-\d+)?(\.gz)?$")
_PARSERS = {
    "jsonl": records.parse_json,
    "txt": records.parse_lines,
    "tfrecord": records.parse_examples,
    "array_record": records.parse_examples,
}
_LINES = ("jsonl", "txt")
_LISTED = 20


class RecordFiles(seqio.DataSource):
    """Text fields of records in files of one format, on any path that TensorFlow reads (gs:// too).

    .jsonl                     one object per line; a list of units becomes unit text
    .txt                       one line per record, its only field
    .tfrecord, .array_record   tf.train.Example; ArrayRecord on local disks only

    Names may end in `-00000-of-00008`; all but ArrayRecord may be compressed (.gz).

    In .jsonl and .txt, byte order marks and blank lines are skipped; only "\\n" ends a line.

    All records of this reader are read and checked before the first one is returned. Bad records
    raise a UserError or, with `on_error="skip"`, are counted, logged and left out. Records are
    shuffled within each epoch. (SeqIO's own shuffling comes after the repetition: its buffer would
    read twenty records five hundred times before it returns the first.)

    Args:
      split_to_filepattern: split -> file pattern, or list of files.
      fields: names of the fields.
      check: function that finds problems of records.
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
        super().__init__(splits=tuple(split_to_filepattern), performs_internal_shuffling=True)
        self._split_to_filepattern = dict(split_to_filepattern)
        self._fields = tuple(fields)
        self._check = check
        self._on_error = on_error

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        pattern = self._split_to_filepattern[split]
        files = sorted(tf.io.gfile.glob(pattern))
        if not files:
            raise UserError(f"No file matches {pattern} (split {split!r}); check the path.")
        return files

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
        format_ = file_format(files)
        readable, num_records = self._checked(files)
        if not num_records and (not shard_info or shard_info.num_shards == 1):
            raise UserError(f"The files of split {split!r} have no records, such as {files[0]}.")
        dataset = tf.data.Dataset.from_tensor_slices(tf.constant(readable, tf.string))
        if shuffle:
            dataset = dataset.shuffle(max(1, len(readable)), seed=seed)
        dataset = dataset.interleave(
            lambda file: self._good_records(file, format_),
            cycle_length=16,
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        if shuffle:
            dataset = dataset.shuffle(max(1, min(num_records, SHUFFLE_BUFFER)), seed=seed)
        return dataset

    def _good_records(self, file: tf.Tensor, format_: tuple[str, str]) -> tf.data.Dataset:
        def keep_good(texts, problems):
            return {field: tf.boolean_mask(text, problems == "") for field, text in texts.items()}

        return self._parsed(file, format_).map(keep_good).unbatch()

    def _parsed(self, file, format_: tuple[str, str]) -> tf.data.Dataset:
        """Fields and problems of batches of records [B]."""
        name, compression = format_

        def parse(batch: tf.Tensor) -> tuple[Texts, tf.Tensor]:
            blank = tf.zeros_like(batch)
            if name in _LINES:
                batch, blank = records.skip_blank(batch)
            texts, problems = _PARSERS[name](batch, self._fields)
            checks = [blank, problems, records.encoding_problems(texts), self._check(texts)]
            return texts, records.first_problem(checks)

        dataset = read_file(file, name, compression).batch(_PARSE_BATCH)
        return dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)

    def _checked(self, files: list[str]) -> tuple[list[str], int]:
        """Files that have records, and the number of good records.

        Logs the files and records that are left out.

        Raises:
          UserError: a file or record is bad and on_error is "stop", or all records are bad.
        """
        format_ = file_format(files)
        readable, problems, total, good = [], [], 0, 0
        for file in files:
            try:
                found = list(self._problems(file, format_))
            except UserError as error:
                problems.append(str(error))
                continue
            if found:
                readable.append(file)
            else:
                logger.warning("%s has no records.", file)
            total += len(found)
            good += sum(not problem for _, problem in found)
            problems += [f"{file}, {where}: {problem}" for where, problem in found if problem]
        if problems:
            self._report(problems, total)
            if not good:
                raise UserError(f"None of the records can be used: {problems[0]}.")
        return readable, good

    def _problems(self, file: str, format_: tuple[str, str]) -> Iterator[tuple[str, str]]:
        """Place of each record, such as "line 3", and its problem, "" if there is none.

        Raises:
          UserError: the file is damaged.
        """
        name, _ = format_
        unit = "line" if name in _LINES else "record"
        number = 0
        if not tf.io.gfile.stat(file).length:
            return
        try:
            batches = self._parsed(file, format_).as_numpy_iterator()
            problems = itertools.chain.from_iterable(batch.tolist() for _, batch in batches)
            for number, problem in enumerate(problems, 1):
                if problem != records.BLANK:
                    yield f"{unit} {number}", problem.decode()
        # ArrayRecord raises the last two.
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{file} is no {name} file, or damaged: {reason}") from error
        if not number and name == "array_record":  # Other files read as an empty ArrayRecord.
            raise UserError(f"{file} is no {name} file, or has no records")

    def _report(self, problems: list[str], total: int) -> None:
        if self._on_error == "stop":
            raise UserError(
                f"{problems[0]}. {len(problems)} of {total} records are bad; correct them, or bind "
                "on_error = 'skip' to leave them out."
            )
        share = 100 * len(problems) / max(total, 1)
        logger.warning("Left out %d of %d records (%.2f %%):", len(problems), total, share)
        for problem in problems[:_LISTED]:
            logger.warning("  %s", problem)
        if len(problems) > _LISTED:
            logger.warning("  and %d more", len(problems) - _LISTED)


def file_format(files: Sequence[str]) -> tuple[str, str]:
    """Format and compression: ["a.jsonl.gz", "b.jsonl.gz"] -> "jsonl", "GZIP".

    Raises:
      UserError: a format is unknown, or there are several.
    """
    formats = {}
    for file in files:
        match = _FORMAT.search(file)
        if not match:
            raise UserError(f"{file}: expected .jsonl, .txt, .tfrecord or .array_record.")
        formats[match.groups()] = file
    if len(formats) > 1:
        raise UserError(
            f"Files of one split have one format, got {', '.join(formats.values())}; narrow"
            " the file pattern, or convert some."
        )
    ((name, gz),) = formats
    return name, "GZIP" if gz else ""


def read_file(file: str | tf.Tensor, format_: str, compression: str) -> tf.data.Dataset:
    """The records of a file, as bytes."""
    if format_ == "array_record":
        return _read_array_record(file)
    if format_ == "tfrecord":
        return tf.data.TFRecordDataset(file, compression)
    return tf.data.TextLineDataset(file, compression)


def _read_array_record(file: str | tf.Tensor) -> tf.data.Dataset:
    def open_file(file) -> ArrayRecordReader:
        return ArrayRecordReader(os.fsdecode(np.asarray(file).item()))

    def count(file) -> np.int64:
        return np.int64(open_file(file).num_records())

    def read(file, start) -> np.ndarray:
        reader = open_file(file)
        stop = min(start + _PARSE_BATCH, reader.num_records())
        return np.array(reader.read(int(start), int(stop)), object)

    num_records = tf.numpy_function(count, [file], tf.int64, stateful=False)
    starts = tf.data.Dataset.range(0, tf.ensure_shape(num_records, []), _PARSE_BATCH)
    batches = starts.map(
        lambda start: tf.ensure_shape(
            tf.numpy_function(read, [file, start], tf.string, stateful=False), [None]
        )
    )
    return batches.unbatch()


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
        positions = tf.data.Dataset.range(len(records))
        if shard_info:
            positions = positions.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            positions = positions.shuffle(len(records), seed=seed)
        return positions.map(
            lambda i: tf.io.parse_single_example(records[i], self.feature_description),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def read_records(file: str) -> tf.Tensor:
    """All records [N] of a GZIP TFRecord file."""
    if not tf.io.gfile.exists(file):
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
