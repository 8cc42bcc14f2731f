"""The texts in packed batches, to compare what was read by different ways."""

import seqio

from speechgpt_jax.data.pipeline import load_once


def texts_of(batches, vocabulary):
    """The text of every packed example."""
    for batch in batches:
        for tokens, segments in zip(
            batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                yield vocabulary.decode(tokens[segments == segment])


def once(task):
    vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
    batches = load_once(task, "train", batch_size=4, sequence_length=128)
    return sorted(texts_of(batches, vocabulary))
