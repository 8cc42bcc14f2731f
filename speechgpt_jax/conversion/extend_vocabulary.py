"""More tokens for a run: units and markers, in its tokenizer and in its embedding."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from speechgpt_jax import checkpoints, files
from speechgpt_jax.conversion import llama
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.training.start import VOCABULARY_AXIS

# Rows whose moments are computed at once, so that a large embedding is not copied.
_BLOCK = 8192


def extend(
    base: epath.Path,
    out: epath.Path,
    tokens: Sequence[str],
    noise: float,
    seed: int,
    template: str | None = None,
) -> range:
    """Writes the run `out`: the newest checkpoint of `base` with more tokens.

    The ids of the new tokens follow those of the tokenizer. Rows of the base beyond its tokenizer's
    ids, as Qwen has them, are overwritten or dropped. The new rows of the embedding and of the
    output layer are the mean of the old ones, which hardly changes the predictions (Hewitt 2021),
    plus noise, so that new tokens differ from one another.

    Args:
      base: a run, such as one that `llama.from_hf` wrote, or one of its checkpoints.
      out: the new run.
      tokens: the new tokens, in the order of their ids.
      noise: standard deviation of the noise, relative to that of the old rows.
      seed: seed of the noise.
      template: name of one of `prompts.TEMPLATES`, saved with the tokenizer; None: as in the base.

    Returns:
      The new ids.

    Raises:
      UserError: the base is damaged, has an adapter, no tokenizer, one of the tokens or not those
        of the template, or `out` can't be written.
    """
    files.refuse_existing(out.parent, out.name)
    parameters = checkpoints.Parameters(base)
    saved = parameters.metadata
    old = LlamaConfig.from_metadata(saved, base)
    if old.lora:
        raise UserError(
            f"{base} has an adapter: merge it by `convert_llama to_hf RUN OUT --merge`, and convert"
            " OUT by `convert_llama from_hf`."
        )
    tokenizer = llama.run_tokenizer(base)
    if tokenizer is None:
        raise UserError(f"{base} has no tokenizer; convert it from a folder that has one.")
    if tokenizer.vocab_size > old.vocab_size:
        raise UserError(
            f"{base} has a tokenizer of {tokenizer.vocab_size} ids, but an embedding of"
            f" {old.vocab_size} rows: take both from the same run."
        )
    with naming(base):
        extended = tokenizer.with_tokens(tokens)
        if template is not None:
            extended = extended.with_template(template)
    config = dataclasses.replace(old, vocab_size=extended.vocab_size)
    kept = tokenizer.vocab_size
    comment = f"# {len(tokens)} tokens were added to {base.name}.\n"
    metadata = saved | {
        "config": comment + saved["config"],
        "model": dataclasses.asdict(config),
    }
    with files.whole_folder(out) as unfinished:
        grown = _with_new_rows(parameters, kept, config, noise, seed)
        checkpoints.save_parameters(unfinished, grown, metadata)
        extended.save_pretrained(unfinished / "tokenizer")
    return range(kept, extended.vocab_size)


def _with_new_rows(
    parameters: checkpoints.Parameters, kept: int, config: LlamaConfig, noise: float, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters of the base, those with one row per token with their new rows."""
    for i, name in enumerate(sorted(parameters.shapes)):
        array = parameters.read(name)
        if name not in VOCABULARY_AXIS:
            yield name, array
            continue
        rows = array if VOCABULARY_AXIS[name] == 0 else array.T
        rng = np.random.default_rng((seed, i))
        grown = _grown(rows, kept, config, noise, rng)
        yield name, grown if VOCABULARY_AXIS[name] == 0 else np.ascontiguousarray(grown.T)


def _grown(
    rows: np.ndarray,  # [V, D]
    kept: int,
    config: LlamaConfig,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:  # [padded vocabulary, D]
    """The first `kept` rows, the new ones, and padding rows of zeros."""
    grown = np.zeros((config.padded_vocab_size, rows.shape[1]), rows.dtype)
    grown[:kept] = rows[:kept]
    mean, deviation = _moments(rows[:kept])
    new = rng.standard_normal((config.vocab_size - kept, rows.shape[1]))
    grown[kept : config.vocab_size] = mean + noise * deviation * new
    return grown


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, float64 [D]."""
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        total, squares = total + block.sum(0), squares + (block**2).sum(0)
    mean = total / len(rows)
    return mean, np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
