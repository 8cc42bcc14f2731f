"""Packed batches of one epoch in order, and their texts."""

import numpy as np
import seqio

from speechgpt_jax.data.packing import FEATURES, Packer, pack


def load_once(provider, split, *, batch_size, sequence_length):
    """One epoch of a split in order, packed; the last batch is filled with empty rows."""
    if isinstance(provider, str):
        provider = seqio.get_mixture_or_task(provider)
    dataset = provider.get_dataset(
        dict.fromkeys(provider.output_features, sequence_length),
        split,
        shuffle=False,
        seed=0,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    packer = Packer(sequence_length)
    for example in dataset.as_numpy_iterator():
        packer.add({key: example[key] for key in FEATURES if key in example})
    vocabulary = provider.output_features["targets"].vocabulary
    rows = []
    while packer:
        rows.append(pack(packer.fill_row(), sequence_length, vocabulary.bos_id, vocabulary.unk_id))
    rows += [{k: np.zeros_like(v) for k, v in rows[0].items()}] * (-len(rows) % batch_size)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield {key: np.stack([row[key] for row in batch]) for key in rows[0]}


def texts_of(batches, vocabulary):
    """The text of every packed example."""
    for batch in batches:
        for tokens, segments in zip(
            batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                yield vocabulary.decode(tokens[segments == segment])


def once(task):
    """Sorted texts of all training examples of a task."""
    vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
    batches = load_once(task, "train", batch_size=4, sequence_length=128)
    return sorted(texts_of(batches, vocabulary))
