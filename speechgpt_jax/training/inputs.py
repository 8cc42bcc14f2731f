"""The language model's input: every process reads its own rows of the global batches."""

import jax

from speechgpt_jax.data.pipeline import Batches, load_batches


def load_host_batches(
    mixture: str, *, batch_size: int, sequence_length: int, split: str = "train", seed: int = 0
) -> Batches:
    """This process's rows of packed batches [batch_size, sequence_length], without end.

    Args:
      mixture: name of a SeqIO task or mixture.
      batch_size: rows over all processes.
      sequence_length: tokens of a row.
      split: e.g. "train".
      seed: of shuffling and mixing.
    """
    if batch_size % jax.process_count():
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of {jax.process_count()} processes."
        )
    return load_batches(
        mixture,
        split,
        batch_size=batch_size // jax.process_count(),
        sequence_length=sequence_length,
        seed=seed,
        shard_index=jax.process_index(),
        num_shards=jax.process_count(),
    )
