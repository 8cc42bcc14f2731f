"""Check that a speech encoder, a vocoder and the tokenizer between them have the same units."""

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder


def check_same_units(speech2unit: Speech2Unit, vocoder: UnitVocoder, **others: int) -> None:
    """Raises a UserError unless both have the same number of units; `others` are further numbers.

    `tokenizer=1000` checks that a tokenizer has as many.
    """
    counts = {
        **others,
        "HuBERT": speech2unit.num_units,
        "vocoder": vocoder.config.num_embeddings,
    }
    if len(set(counts.values())) > 1:
        *first, last = counts
        raise UserError(
            f"{', '.join(first)} and {last} must have the same number of units, got {counts}: give"
            " the HuBERT with which the units were made and a vocoder that was trained on them."
        )
