"""Mixture -> packed batches of this process.

batches = load_batches("demo_asr", "train", batch_size=8, sequence_length=256)
batch = next(batches)        # SeqIO's decoder_* features, int32 [8, 256] each
position = batches.state()   # position after this batch
batches.restore(position)    # continue with the next batch
"""

import functools
import itertools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data import registry
from speechgpt_jax.data.packing import (
    FEATURES,
    Example,
    Packer,
    concatenate,
    from_bytes,
    pack,
    separate,
    to_bytes,
)
from speechgpt_jax.data.sources import CachedExamples, read_errors
from speechgpt_jax.errors import UserError

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]  # feature -> int32 [B, T]

# Examples go from TensorFlow to NumPy in batches, since the cost is per call.
_READ_BATCH = 32


class Batches(Iterator[Batch]):
    """Batches of several readers, concatenated along the rows.

    All readers together give the same batches and positions, however the readers are distributed
    over the processes.

    Attributes:
      shape: rows and tokens per row of each batch, without those of other processes.
    """

    def __init__(self, readers: Mapping[str, "Reader"]):
        self._readers = dict(readers)
        shapes = [reader.shape for reader in self._readers.values()]
        self.shape = sum(rows for rows, _ in shapes), shapes[0][1]

    def __next__(self) -> Batch:
        parts = [next(reader) for reader in self._readers.values()]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    @property
    def position_names(self) -> Collection[str]:
        """Names of this process's readers."""
        return self._readers.keys()

    def state(self) -> dict[str, bytes]:
        """Position of each of this process's readers, by its name."""
        return {name: reader.state() for name, reader in self._readers.items()}

    def restore(self, positions: Mapping[str, bytes]) -> None:
        """Resumes from the positions of all readers, those of other processes included."""
        for name, reader in self._readers.items():
            reader.restore(positions[name])


class Reader(Iterator[Batch]):
    """Packed batches whose position can be saved and restored exactly.

    The position is that after the last batch returned: it includes what TensorFlow has read ahead
    and what is in the packer's pool.

    Args:
      load_examples: function that returns an infinite dataset of this reader's examples, or with
        `whole=True` of all examples, for a reader whose share is empty.
      batch_size: rows per batch.
      sequence_length: tokens per row.
      bos_id: first input token of every example, or None.
      unk_id: token without loss, or None.
    """

    def __init__(
        self,
        load_examples: Callable[..., tf.data.Dataset],
        batch_size: int,
        sequence_length: int,
        bos_id: int | None,
        unk_id: int | None,
    ):
        self._load_examples = load_examples
        self._batch_size = batch_size
        self.shape = batch_size, sequence_length
        self._bos_id, self._unk_id = bos_id, unk_id
        self._packer = Packer(sequence_length)
        self._waiting: list[Example] = []
        self._start(whole=False)

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self._batch_size)]
        return _stack(rows)

    def state(self) -> bytes:
        """Position after the last batch returned."""
        iterator = tf.raw_ops.SerializeIterator(resource_handle=self._iterator._iterator_resource)
        return to_bytes(
            {"iterator": np.frombuffer(tf.io.serialize_tensor(iterator).numpy(), np.uint8)}
            | {f"packer/{name}": array for name, array in self._packer.state().items()}
            | {f"waiting/{name}": array for name, array in concatenate(self._waiting).items()}
            | ({"whole": np.array(True)} if self._whole else {})
        )

    def restore(self, state: bytes) -> None:
        """Resumes after the batch at which `state` was taken.

        Raises:
          UserError: the state is that of other data.
        """
        arrays = from_bytes(state)
        if self._whole != ("whole" in arrays):
            self._start(whole=not self._whole)
        try:
            iterator = tf.io.parse_tensor(arrays["iterator"].tobytes(), tf.variant)
            tf.raw_ops.DeserializeIterator(
                resource_handle=self._iterator._iterator_resource, serialized=iterator
            )
        except tf.errors.OpError as error:
            raise UserError(
                "This input position was saved by another input pipeline; resume with the"
                " same mixture and split."
            ) from error
        self._packer.restore(_group(arrays, "packer"))
        self._waiting = separate(_group(arrays, "waiting"))

    def _start(self, whole: bool) -> None:
        self._whole = whole
        examples = self._load_examples(whole=whole)
        self._iterator = iter(examples.ragged_batch(_READ_BATCH).prefetch(1))

    def _next_row(self) -> Batch:
        while not self._packer.is_full:
            if not self._waiting:
                self._waiting = _next_examples(self._iterator)
            if self._waiting:
                self._packer.add(self._waiting.pop(0))
            elif not self._whole:  # There are fewer records than readers.
                self._start(whole=True)
            else:
                raise UserError(
                    "The data has no example: a task's files are empty, or its filters keep no"
                    " record; check its `files` and its `direction`."
                )
        return pack(self._packer.fill_row(), self._packer.length, self._bos_id, self._unk_id)


def load_batches(
    mixture_or_task: str | seqio.Task | seqio.Mixture,
    split: str,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    readers: Iterable[int] = (0,),
    num_readers: int = 1,
    cache_dir: str | None = None,
) -> Batches:
    """Infinite shuffled batches for training.

    The data is divided among `num_readers` readers: each reads whole files or, if there are fewer
    files than readers, every `num_readers`-th record of all files. Each record is read once per
    epoch of its reader; a reader without records reads all of the data. The batches and positions
    of all readers together do not depend on how the readers are distributed over the processes, so
    that any number of processes resumes exactly. A position is small; only that of other SeqIO
    sources (TFDS) that are not cached holds their shuffle buffer.

    Args:
      mixture_or_task: a SeqIO provider, or the name of a registered one.
      split: e.g. "train".
      batch_size: rows per batch of each reader.
      sequence_length: tokens per row. Longer examples are dropped and counted in the log.
      seed: seed of shuffling, mixing and the choice of task descriptions.
      readers: numbers of this process's readers.
      num_readers: number of readers of all processes.
      cache_dir: where `seqio_cache_tasks` wrote the tasks; by default they are not cached.

    Raises:
      UserError: there is no such task or split, or a task is not in `cache_dir`.
    """
    provider = _get_provider(mixture_or_task, split)
    if cache_dir:
        provider = _from_cache(provider, cache_dir)
    _warn_of_uneven_files(provider, split, num_readers)
    vocabulary = provider.output_features["targets"].vocabulary
    return Batches(
        {
            f"reader_{i}_of_{num_readers}": Reader(
                functools.partial(
                    _load_shuffled,
                    provider,
                    split,
                    sequence_length,
                    seed=seed,
                    shard_info=seqio.ShardInfo(i, num_readers),
                ),
                batch_size,
                sequence_length,
                vocabulary.bos_id,
                vocabulary.unk_id,
            )
            for i in readers
        }
    )


def load_held_out(
    mixture_or_task: str | seqio.Task | seqio.Mixture,
    split: str,
    *,
    batch_size: int,
    sequence_length: int,
    num_batches: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> Iterator[Batch]:
    """The examples of a split in their order, each once, in packed batches.

    The last batch is filled with rows of padding, which have no loss.

    Args:
      mixture_or_task, split, sequence_length, cache_dir: see `load_batches`.
      batch_size: rows per batch.
      num_batches: number of batches, the first ones; by default all.
      seed: seed of mixing and of the choice of task descriptions.

    Raises:
      UserError: there is no such task or split, or no example of it fits into a row.
    """
    provider = _get_provider(mixture_or_task, split)
    if cache_dir:
        provider = _from_cache(provider, cache_dir)
    examples = provider.get_dataset(
        dict.fromkeys(provider.output_features, sequence_length),
        split,
        shuffle=False,
        seed=seed,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    vocabulary = provider.output_features["targets"].vocabulary
    ids = vocabulary.bos_id, vocabulary.unk_id
    rows = (pack(row, sequence_length, *ids) for row in _packed_once(examples, sequence_length))
    if num_batches is not None:
        rows = itertools.islice(rows, num_batches * batch_size)
    batch: list[Batch] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield _stack(batch)
            batch = []
    if batch:
        padding = {key: np.zeros_like(values) for key, values in batch[0].items()}
        yield _stack(batch + [padding] * (batch_size - len(batch)))


def _packed_once(examples: tf.data.Dataset, sequence_length: int) -> Iterator[list[Example]]:
    """The examples of each row, for all examples of a finite dataset."""
    packer = Packer(sequence_length)
    iterator = iter(examples.ragged_batch(_READ_BATCH).prefetch(1))
    while group := _next_examples(iterator):
        for example in group:
            packer.add(example)
            if packer.is_full:
                yield packer.fill_row()
    if not packer.taken:
        raise UserError(
            "The split has no example: its files are empty, or the task's filters keep no record;"
            " check the task's `direction`, or name another split."
        )
    if packer.dropped == packer.taken:
        raise UserError(
            f"None of the {packer.taken} examples of the split fits into {sequence_length} tokens;"
            " set a longer sequence_length."
        )
    while len(packer):
        yield packer.fill_row()


def _load_shuffled(
    provider: seqio.Task | seqio.Mixture,
    split: str,
    sequence_length: int,
    *,
    seed: int,
    shard_info: seqio.ShardInfo,
    whole: bool,
) -> tf.data.Dataset:
    """Infinite dataset of untrimmed examples: those of one shard, or with `whole` all."""
    return provider.get_dataset(
        dict.fromkeys(provider.output_features, sequence_length),
        split,
        shuffle=True,
        # Each reader of all records has an order of its own.
        seed=seed + shard_info.index if whole else seed,
        num_epochs=None,
        shard_info=None if whole else shard_info,
        trim_output_features=False,
        try_in_mem_cache=False,
    )


def _get_provider(mixture_or_task: str | seqio.Task | seqio.Mixture, split: str):
    provider = mixture_or_task
    if isinstance(provider, str):
        provider = registry.find(provider)
    registry.check_split(provider.name, [provider], split)
    return provider


def _from_cache(provider: seqio.Task | seqio.Mixture, cache_dir: str) -> seqio.Task | seqio.Mixture:
    """The same examples, read from `cache_dir`.

    SeqIO's own reader would shuffle examples instead of their positions.

    Raises:
      UserError: a task is not in `cache_dir`.
    """
    if isinstance(provider, seqio.Mixture):
        tasks = [(_from_cache(task, cache_dir), provider.get_rate(task)) for task in provider.tasks]
        return seqio.Mixture(provider.name, tasks)
    with read_errors(cache_dir):
        tf.io.gfile.exists(cache_dir)
    seqio.add_global_cache_dirs([cache_dir])
    if not (provider.supports_caching and provider.cache_dir):
        raise UserError(
            f"Task {provider.name} is not in {cache_dir}; call seqio_cache_tasks"
            f" --tasks={provider.name} --output_cache_dir={cache_dir}, and name the module that"
            " registers it as --module_import."
        )
    steps = provider.preprocessors
    cached = next(i for i, s in enumerate(steps) if isinstance(s, seqio.CacheDatasetPlaceholder))
    return provider.replace(
        source=CachedExamples(provider),
        preprocessors=steps[cached + 1 :],
        shuffle_buffer_size=None,
    )


def _warn_of_uneven_files(provider, split: str, num_readers: int) -> None:
    for task in seqio.get_subtasks(provider):
        if split not in task.splits or task.source.supports_arbitrary_sharding:
            continue
        files = task.source.list_shards(split)
        if len(files) % num_readers:
            effect = (
                "every reader goes through all of them and keeps its share of the records"
                if len(files) < num_readers
                else "readers with fewer files start their next epoch earlier"
            )
            logger.warning(
                "%s has %d files for %d readers: %s. No record is lost; best are multiples of %d.",
                *(task.name, len(files), num_readers, effect, num_readers),
            )


def _next_examples(iterator) -> list[Example]:
    """Examples of the next ragged batch; [] at the end of the dataset.

    Raises:
      UserError: a file can't be read, or a preprocessor refused a record; the message leaves out
        TensorFlow's graph nodes.
    """
    try:
        group = next(iterator)
    except StopIteration:
        return []
    except tf.errors.OpError as error:
        message = re.sub(r"\{\{.*?\}\} ?", "", error.message)
        raise UserError(f"The data can't be read: {message.splitlines()[0]}") from error
    arrays = {}
    for key in FEATURES:
        if key in group:
            arrays[key] = group[key].flat_values.numpy()
            arrays[f"{key}/sizes"] = np.diff(group[key].row_splits.numpy())
    return separate(arrays)


def _stack(rows: list[Batch]) -> Batch:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _group(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = name + "/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
