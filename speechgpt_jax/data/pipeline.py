"""Mixture -> packed batches of this host.

batches = load_batches("demo_asr", "train", batch_size=8, sequence_length=256)
batch = next(batches)        # SeqIO's decoder_* features, int32 [8, 256] each
position = batches.state()   # of what was handed out so far
batches.restore(position)    # the next batch is the one that came after it
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from speechgpt_jax.data.packing import (
    POOL_SIZE,
    Packer,
    concatenate,
    from_bytes,
    pack,
    separate,
    to_bytes,
)

Batch = dict[str, np.ndarray]  # [B, T] int32 each

# Examples cross from TensorFlow to numpy by the dozen: the crossing costs more than the example.
_READ_BATCH = 32


class _WholeExamples:
    """A feature converter without its padding: the packer needs examples at their own length."""

    def _pack_or_pad(self, ds, packed_lengths):
        return ds


class _LanguageModel(_WholeExamples, seqio.LMFeatureConverter):
    """Loss on every token."""


class _PrefixLanguageModel(_WholeExamples, seqio.PrefixLMFeatureConverter):
    """Loss on the targets."""


class Batches(Iterator[Batch]):
    """Packed batches, whose position can be saved and restored exactly.

    The position is that of the batches handed out: what TensorFlow reads ahead and what waits in
    the packer's pool is part of it.
    """

    def __init__(self, examples: tf.data.Dataset, batch_size: int, sequence_length: int):
        self._iterator = iter(examples.ragged_batch(_READ_BATCH).prefetch(1))
        self._batch_size = batch_size
        self._packer = Packer(sequence_length)
        self._waiting: list[dict[str, np.ndarray]] = []

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self._batch_size)]
        return _stack(rows)

    def state(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/iterator")
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return to_bytes(
            {f"file/{name}": np.frombuffer(data, np.uint8) for name, data in files.items()}
            | {f"packer/{name}": array for name, array in self._packer.state().items()}
            | {f"waiting/{name}": array for name, array in concatenate(self._waiting).items()}
        )

    def restore(self, state: bytes) -> None:
        """Goes on after the batch that `state` was taken at.

        Raises:
          ValueError: the state of other data: another mixture, seed or number of hosts.
        """
        arrays = from_bytes(state)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in _group(arrays, "file").items():
                (Path(folder) / name).write_bytes(data.tobytes())
            checkpoint = tf.train.Checkpoint(iterator=self._iterator)
            try:
                checkpoint.read(f"{folder}/iterator").assert_consumed()
            except (tf.errors.OpError, AssertionError) as error:
                raise ValueError(
                    "This input position was saved by another input pipeline; start from the "
                    "same mixture, split, seed and number of hosts."
                ) from error
        self._packer.restore(_group(arrays, "packer"))
        self._waiting = separate(_group(arrays, "waiting"))

    def _next_row(self) -> Batch:
        while len(self._packer) < POOL_SIZE:
            if not self._waiting:
                self._waiting = _next_examples(self._iterator)
            self._packer.add(self._waiting.pop(0))
        return pack(self._packer.fill_row(), self._packer.length)


def load_batches(
    mixture_or_task: str | seqio.Task | seqio.Mixture,
    split: str,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    shard_index: int = 0,
    num_shards: int = 1,
) -> Batches:
    """Shuffled batches without end, for training.

    Args:
      mixture_or_task: a SeqIO provider, or the name of a registered one.
      split: e.g. "train".
      batch_size: rows of this host's batch.
      sequence_length: tokens of a row. Longer examples are dropped and counted in the log.
      seed: of shuffling, mixing and the choice of task descriptions.
      shard_index: which share of the data this host reads.
      num_shards: number of hosts.
    """
    examples = _load_examples(
        mixture_or_task,
        split,
        sequence_length,
        shuffle=True,
        seed=seed,
        num_epochs=None,
        shard_info=seqio.ShardInfo(shard_index, num_shards),
    )
    return Batches(examples, batch_size, sequence_length)


def load_once(
    mixture_or_task: str | seqio.Task | seqio.Mixture,
    split: str,
    *,
    batch_size: int,
    sequence_length: int,
) -> Iterator[Batch]:
    """Every example of a split once and in order, packed; for the loss on held-out data.

    The rows that are missing from the last batch are padding.
    """
    examples = _load_examples(
        mixture_or_task, split, sequence_length, shuffle=False, seed=0, num_epochs=1
    )
    iterator = iter(examples.ragged_batch(_READ_BATCH))
    packer = Packer(sequence_length)
    while group := _next_examples(iterator):
        for example in group:
            packer.add(example)
    rows = []
    while packer:
        rows.append(pack(packer.fill_row(), sequence_length))
    empty_rows = -len(rows) % batch_size
    rows += [{key: np.zeros_like(row) for key, row in rows[0].items()} for _ in range(empty_rows)]
    for start in range(0, len(rows), batch_size):
        yield _stack(rows[start : start + batch_size])


def _load_examples(mixture_or_task, split, sequence_length, **options) -> tf.data.Dataset:
    """Examples at their own length, with the decoder features that don't depend on packing."""
    provider = _get_provider(mixture_or_task)
    if split not in provider.splits:
        raise ValueError(
            f"{provider.name} has no split {split!r}; it has {', '.join(sorted(provider.splits))}."
        )
    lengths = dict.fromkeys(provider.output_features, sequence_length)
    bos_id = provider.output_features["targets"].vocabulary.bos_id
    converter_cls = _PrefixLanguageModel if "inputs" in lengths else _LanguageModel
    converter = converter_cls(pack=False, apply_length_check=False, bos_id=bos_id)
    dataset = provider.get_dataset(
        lengths, split, trim_output_features=False, try_in_mem_cache=False, **options
    )
    return _decoder_features(dataset, converter, lengths)


@tf.autograph.experimental.do_not_convert
def _decoder_features(dataset, converter, lengths) -> tf.data.Dataset:
    # The model is causal over the prefix too, so SeqIO's mask of it has no reader.
    features = converter(dataset, lengths)
    return features.map(lambda f: {k: v for k, v in f.items() if k != "decoder_causal_attention"})


def _get_provider(mixture_or_task: str | seqio.Task | seqio.Mixture):
    if not isinstance(mixture_or_task, str):
        return mixture_or_task
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if mixture_or_task not in registered:
        raise ValueError(
            f"No task or mixture is called {mixture_or_task!r}; "
            f"there are {', '.join(sorted(registered))}."
        )
    return seqio.get_mixture_or_task(mixture_or_task)


def _next_examples(iterator) -> list[dict[str, np.ndarray]]:
    """The examples of the next ragged batch; none at the end of the data.

    Raises:
      ValueError: what a preprocessor says of a record, without TensorFlow's account of where.
    """
    try:
        group = next(iterator)
    except StopIteration:
        return []
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        message = re.sub(r"\{\{.*?\}\} ?", "", error.message)
        raise ValueError(f"The data can't be read: {message.splitlines()[0]}") from error
    flat = {key: value.flat_values.numpy() for key, value in group.items()}
    sizes = group["decoder_target_tokens"].row_lengths().numpy()
    return separate({"sizes": sizes, **flat})


def _stack(rows: list[Batch]) -> Batch:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _group(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = name + "/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
