"""Generation of tokens: one prefill of the prompts, then one token per step with a KV cache."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama

# Prompts are padded to the next of these lengths in tokens, longer ones to multiples of the last;
# each new length is compiled once, which takes a few seconds.
PROMPT_LENGTHS = (32, 64, 128, 256, 512)


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    min_new_tokens: int = 0,
    forbidden_ids: Sequence[int] = (),
    key: jax.Array | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Continues every prompt until a stop token or `max_new_tokens`.

    Args:
      model: the language model.
      prompts: B lists of token ids, of any lengths.
      max_new_tokens: longest answer, in tokens.
      stop_ids: token ids that end an answer.
      sampling: how tokens are drawn.
      min_new_tokens: shortest answer, in tokens.
      forbidden_ids: token ids that are never drawn.
      key: a PRNG key; by default `jax.random.key(0)`.

    Returns:
      tokens int32 [B, max_new_tokens] and lengths int32 [B], numpy: row b's answer is
      `tokens[b, :lengths[b]]`, without the stop token; the tokens after it are undefined.

    Raises:
      UserError: there is no prompt, one is empty, a token id is outside of the vocabulary,
        `max_new_tokens` is below 1, or `min_new_tokens` is above it.
    """
    check_number("max_new_tokens", max_new_tokens, at_least=1)
    check_number("min_new_tokens", min_new_tokens, at_least=0, at_most=max_new_tokens)
    config = model.config
    if not len(prompts):
        raise UserError("Got no prompts; give at least one prompt.")
    if not all(len(prompt) for prompt in prompts):
        raise UserError("A prompt is empty; begin it with at least the bos token.")
    _check_ids(config.vocab_size, *prompts, stop_ids, forbidden_ids)
    padded, start = _pad_left(prompts)
    graphdef, state = nnx.split(model)
    tokens, lengths = generate_padded(
        graphdef,
        state,
        padded,
        start,
        _id_mask(config, stop_ids),
        _id_mask(config, forbidden_ids),
        jax.random.key(0) if key is None else key,
        min_new_tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
    return np.asarray(tokens), np.asarray(lengths)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "sampling"))
def generate_padded(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: jax.Array,  # int32 [B, T], padded on the left
    start: jax.Array,  # int32 [B], number of padding tokens
    is_stop: jax.Array,  # bool [V]
    is_forbidden: jax.Array,  # bool [V]
    key: jax.Array,
    min_new_tokens: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """The jitted body of `generate`: tokens [B, max_new_tokens] and lengths [B]."""
    model = nnx.merge(graphdef, state)
    blocks, output_kernel = model.blocks(), model.output_kernel()
    batch, prompt_length = prompts.shape

    def draw(hidden, step):  # [B, D] -> [B]
        banned = is_forbidden | (is_stop & (step < min_new_tokens))
        logits = jnp.where(banned, -jnp.inf, model.unembed(hidden, output_kernel))
        return sampling(logits, jax.random.fold_in(key, step))

    def unfinished(carry):
        step, lengths, *_ = carry
        return (step < max_new_tokens) & jnp.any(lengths == step)

    def write_token(carry):
        step, lengths, tokens, hidden, cache = carry
        token = draw(hidden, step)
        tokens = tokens.at[:, step].set(token)
        # A row that has stopped keeps its length; its later tokens are ignored.
        continues = (lengths == step) & ~is_stop[token]
        hidden, cache = model.decode(token[:, None], cache, blocks)
        return step + 1, lengths + continues, tokens, hidden[:, -1], cache

    cache = model.init_cache(batch, prompt_length + max_new_tokens, start)
    hidden, cache = model.decode(prompts, cache, blocks)
    tokens = jnp.zeros((batch, max_new_tokens), jnp.int32)
    carry = (0, jnp.zeros(batch, jnp.int32), tokens, hidden[:, -1], cache)
    _, lengths, tokens, *_ = jax.lax.while_loop(unfinished, write_token, carry)
    return tokens, lengths


def _pad_left(prompts):
    """[[7, 8], [9]] -> tokens [[.., 7, 8], [.., 0, 9]] and each row's number of padding tokens."""
    longest = max(len(prompt) for prompt in prompts)
    step = PROMPT_LENGTHS[-1]
    length = next((n for n in PROMPT_LENGTHS if n >= longest), -(-longest // step) * step)
    start = np.array([length - len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, first, prompt in zip(tokens, start, prompts, strict=True):
        row[first:] = prompt
    return tokens, start


def _id_mask(config, ids):
    mask = np.zeros(config.padded_vocab_size, bool)
    mask[list(ids)] = True
    return mask


def _check_ids(vocab_size, *sequences):
    for ids in map(np.asarray, sequences):
        if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
            raise UserError(
                f"Token ids must lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}: use the"
                " tokenizer that was saved with the model."
            )
