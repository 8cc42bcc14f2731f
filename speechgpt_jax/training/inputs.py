"""The language model's input: every process reads its own rows of the global batches."""

from speechgpt_jax import sharding
from speechgpt_jax.data.pipeline import Batches, load_batches
from speechgpt_jax.sharding import MeshConfig


def load_host_batches(
    mixture: str,
    *,
    batch_size: int,
    sequence_length: int,
    split: str = "train",
    seed: int = 0,
    cache_dir: str | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
) -> Batches:
    """This process's rows of packed batches [batch_size, sequence_length], without end.

    Args:
      mixture: name of a SeqIO task or mixture.
      batch_size: rows over all processes.
      sequence_length: tokens of a row.
      split: e.g. "train".
      seed: of shuffling and mixing.
      cache_dir: where `seqio_cache_tasks` wrote the tasks; by default they are made on the fly.
      mesh: says which rows are this process's.
    """
    index, shares = sharding.process_share(sharding.create_mesh(mesh))
    if batch_size % shares:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the {shares} processes that read;"
            f" try {-(-batch_size // shares) * shares}."
        )
    return load_batches(
        mixture,
        split,
        batch_size=batch_size // shares,
        sequence_length=sequence_length,
        seed=seed,
        cache_dir=cache_dir,
        shard_index=index,
        num_shards=shares,
    )
