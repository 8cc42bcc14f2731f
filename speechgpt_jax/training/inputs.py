"""The language model's input: each process reads its own rows of the global batches."""

import dataclasses

import numpy as np

from speechgpt_jax import sharding
from speechgpt_jax.data.pipeline import Batch, Batches, load_batches, load_held_out
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_memory, check_number
from speechgpt_jax.sharding import MeshConfig

# SeqIO's five features of a token, int32 each.
_BYTES_PER_TOKEN = 20


def load_host_batches(
    mixture: str,
    *,
    batch_size: int,
    sequence_length: int,
    split: str = "train",
    seed: int = 0,
    cache_dir: str | None = None,
    num_readers: int | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
) -> Batches:
    """Endless packed batches [batch_size, sequence_length]; each process reads its own rows.

    Args:
      mixture: name of a SeqIO task or mixture.
      batch_size: rows over all processes.
      sequence_length: tokens per row.
      split: e.g. "train".
      seed: seed of shuffling and mixing.
      cache_dir: where `seqio_cache_tasks` wrote the tasks; by default they are not cached.
      num_readers: number of parts in which the data is read, by default the number of processes. A
        run resumes with the next batch on any number of processes that divides it.
      mesh: mesh of the run, which determines the rows of this process.

    Raises:
      UserError: a number is not positive or a batch larger than the memory, the batch does not
        divide over the mesh, `batch_size` is not a multiple of the number of readers, or that is
        not a multiple of the number of processes.
    """
    check_number("batch_size", batch_size, at_least=1)
    check_number("sequence_length", sequence_length, at_least=2)
    check_number("num_readers", 1 if num_readers is None else num_readers, at_least=1)
    devices = sharding.create_mesh(mesh)
    sharding.check_batch((batch_size, sequence_length), devices)
    index, shares = sharding.process_share(devices)
    num_readers = num_readers or shares
    if num_readers % shares:
        raise UserError(
            f"num_readers {num_readers} must be a multiple of the {shares} processes that read."
        )
    if batch_size % num_readers:
        raise UserError(
            f"batch_size {batch_size} must be a multiple of the {num_readers} readers of the data,"
            f" by default one per process; try {-(-batch_size // num_readers) * num_readers}."
        )
    check_memory(
        "batch_size", batch_size, batch_size // shares * sequence_length * _BYTES_PER_TOKEN
    )
    own = num_readers // shares
    return load_batches(
        mixture,
        split,
        batch_size=batch_size // num_readers,
        sequence_length=sequence_length,
        seed=seed,
        cache_dir=cache_dir,
        readers=range(index * own, (index + 1) * own),
        num_readers=num_readers,
    )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Batches of a split that a run is evaluated on.

    Attributes:
      name: put before the names of its metrics, such as "test/unit_loss".
      batches: this process's rows of each batch, with SeqIO's decoder_* keys.
    """

    name: str
    batches: list[Batch]


def load_host_held_out(
    mixture: str,
    *,
    batch_size: int,
    sequence_length: int,
    split: str = "test",
    name: str | None = None,
    num_batches: int | None = 64,
    seed: int = 0,
    cache_dir: str | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
) -> HeldOut:
    """The first batches of a split, each example once; the same on any number of processes.

    Args:
      mixture, cache_dir, mesh: see `load_host_batches`.
      batch_size: rows over all processes.
      sequence_length: tokens per row; longer examples are left out.
      split: e.g. "test".
      name: name of its metrics; by default that of the split.
      num_batches: number of batches, the first ones; None: all.
      seed: seed of mixing and of the choice of task descriptions.

    Raises:
      UserError: a number is not positive or a batch larger than the memory, the batch does not
        divide over the mesh, or the split is unknown, or has no example that fits into a row.
    """
    check_number("batch_size", batch_size, at_least=1)
    check_number("sequence_length", sequence_length, at_least=2)
    check_number("num_batches", 1 if num_batches is None else num_batches, at_least=1)
    devices = sharding.create_mesh(mesh)
    sharding.check_batch((batch_size, sequence_length), devices)
    index, shares = sharding.process_share(devices)
    # Each process reads the rows of all.
    check_memory("batch_size", batch_size, batch_size * sequence_length * _BYTES_PER_TOKEN)
    batches = load_held_out(
        mixture,
        split,
        batch_size=batch_size,
        sequence_length=sequence_length,
        num_batches=num_batches,
        seed=seed,
        cache_dir=cache_dir,
    )
    own = [{k: np.split(x, shares)[index].copy() for k, x in batch.items()} for batch in batches]
    return HeldOut(name or split, own)
