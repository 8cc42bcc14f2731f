"""Cross entropy over a large vocabulary, without all of its logits in memory.

The output layer's columns are processed in blocks: a device never holds the logits of all tokens,
nor the whole kernel gathered from the other devices, nor the whole gradient of it before that is
summed over the devices (Wijmans et al. 2024, "Cut Your Losses"). The backward pass computes the
logits of each block again.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from speechgpt_jax.models.collectives import constrain, gather, matmul, weight_gradient
from speechgpt_jax.models.llama import MASKED_LOGIT, OUTPUT_AXES
from speechgpt_jax.models.llama_config import padded

# Logsumexp, the target's logit (0 if the target is no token of the kernel) and the largest logit,
# each float32 [B, T].
Statistics = tuple[jax.Array, jax.Array, jax.Array]


def token_losses(
    hidden: jax.Array,  # [B, T, D]
    targets: jax.Array,  # [B, T]
    kernels: Iterable[tuple[jax.Array, range]],
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy float32 [B, T] and whether the most likely token is the target, bool [B, T].

    Args:
      hidden: hidden states.
      targets: token ids.
      kernels: parts [D, V] of the output layer and the ids of their columns; columns beyond these
        ids are padding.
      block: columns whose logits are in memory at the same time.
    """
    parts = []
    for kernel, ids in kernels:
        is_own = (targets >= ids.start) & (targets < ids.stop)
        columns = jnp.where(is_own, targets - ids.start, -1)
        parts.append(_statistics(hidden, kernel, columns, len(ids), block))
    normalizers, target_logits, largest = zip(*parts, strict=True)
    target_logit = sum(target_logits)
    losses = functools.reduce(jnp.logaddexp, normalizers) - target_logit
    return losses, target_logit >= functools.reduce(jnp.maximum, largest)


def _statistics(hidden, kernel, targets, num_tokens, block) -> Statistics:
    """Statistics of the logits of a kernel's first `num_tokens` columns."""
    if kernel.shape[1] > block:
        return _blockwise(hidden, kernel, targets, num_tokens, _even(kernel.shape[1], block))
    logits = matmul(hidden, gather(kernel, OUTPUT_AXES), OUTPUT_AXES, jnp.float32)
    logits = jnp.where(jnp.arange(kernel.shape[1]) < num_tokens, logits, MASKED_LOGIT)
    return _statistics_of(logits, targets)


def _even(columns, most):
    """Smallest multiple of 128 that needs as few blocks as blocks of `most` columns would."""
    blocks = -(-columns // most)
    return min(most, padded(-(-columns // blocks)))


def _statistics_of(logits, targets):
    columns = jnp.arange(logits.shape[-1])
    target_logit = jnp.sum(jnp.where(columns == targets[..., None], logits, 0), axis=-1)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    return jax.nn.logsumexp(logits, axis=-1), target_logit, largest


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _blockwise(hidden, kernel, targets, num_tokens, block) -> Statistics:
    return _forward(hidden, kernel, targets, num_tokens, block)[0]


def _forward(hidden, kernel, targets, num_tokens, block):
    def add(total, numbered):
        first, columns = numbered
        logits = _block_logits(hidden, columns, first, num_tokens)
        own = _statistics_of(logits, targets - first)
        normalizer, target_logit, largest = total
        return (
            jnp.logaddexp(normalizer, own[0]),
            target_logit + own[1],
            jnp.maximum(largest, own[2]),
        ), None

    nothing = jnp.full(targets.shape, MASKED_LOGIT, jnp.float32)
    start = nothing, jnp.zeros_like(nothing), nothing
    statistics, _ = jax.lax.scan(add, start, _blocks(kernel, block))
    return statistics, (hidden, kernel, targets, statistics[0])


def _backward(num_tokens, block, residuals, gradients):
    hidden, kernel, targets, normalizer = residuals
    normalizer_gradient, target_gradient, _ = gradients

    def add(hidden_gradient, numbered):
        first, columns = numbered
        logits = _block_logits(hidden, columns, first, num_tokens)
        is_target = jnp.arange(block) == (targets - first)[..., None]
        logits_gradient = normalizer_gradient[..., None] * jnp.exp(logits - normalizer[..., None])
        logits_gradient += target_gradient[..., None] * is_target
        logits_gradient = logits_gradient.astype(hidden.dtype)
        gathered = gather(columns, OUTPUT_AXES)
        hidden_gradient += jnp.matmul(
            logits_gradient, gathered.T, preferred_element_type=jnp.float32
        )
        hidden_gradient = constrain(hidden_gradient, ("batch", "length", "residual"))
        return hidden_gradient, weight_gradient(hidden, logits_gradient, OUTPUT_AXES)

    start = constrain(jnp.zeros(hidden.shape, jnp.float32), ("batch", "length", "residual"))
    hidden_gradient, blocks = jax.lax.scan(add, start, _blocks(kernel, block))
    kernel_gradient = blocks.swapaxes(0, 1).reshape(len(kernel), -1)[:, : kernel.shape[1]]
    return hidden_gradient.astype(hidden.dtype), constrain(kernel_gradient, OUTPUT_AXES), None


_blockwise.defvjp(_forward, _backward)


def _blocks(kernel, block):
    """First column and columns [D, block] of each block, the last one padded."""
    count = -(-kernel.shape[1] // block)
    whole = jnp.pad(kernel, ((0, 0), (0, count * block - kernel.shape[1])))
    blocks = whole.reshape(len(kernel), count, block).swapaxes(0, 1)
    return block * jnp.arange(count), constrain(blocks, (None, *OUTPUT_AXES))


def _block_logits(hidden, columns, first, num_tokens):
    gathered = gather(columns, OUTPUT_AXES)
    logits = jnp.matmul(hidden, gathered, preferred_element_type=jnp.float32)
    is_token = first + jnp.arange(columns.shape[1]) < num_tokens
    return jnp.where(is_token, logits, MASKED_LOGIT)
