"""Cross entropy in blocks of the vocabulary against JAX's log_softmax of all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.training.cross_entropy import token_losses

pytestmark = pytest.mark.slow

NUM_TOKENS, WIDTH = 40, 8


def plain(hidden, kernels, targets):
    """Losses and hits; each kernel without the columns beyond its ids."""
    kernel = jnp.concatenate([kernel[:, : len(ids)] for kernel, ids in kernels], axis=1)
    log_probs = jax.nn.log_softmax(hidden @ kernel)
    losses = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return losses, log_probs.argmax(-1) == targets


def in_blocks(columns, hidden, kernels, targets):
    return token_losses(hidden, targets, kernels, columns)


@functools.partial(jax.jit, static_argnums=(0, 3))
def value_and_gradients(function, hidden, arrays, ids, targets):
    def total(hidden, arrays):
        losses, hits = function(hidden, list(zip(arrays, ids)), targets)
        return jnp.sum(losses * jnp.arange(losses.size).reshape(losses.shape)), (losses, hits)

    return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, arrays)


@pytest.mark.parametrize("columns", [7, 16, 48])
@pytest.mark.parametrize("ids", [(range(40),), (range(30), range(30, 40))])
def test_equals_plain_cross_entropy(columns, ids):
    """Blocks that divide the columns and that don't, one block, and two kernels; all padded."""
    rng = np.random.default_rng(0)
    hidden = jnp.float32(rng.normal(size=(3, 5, WIDTH)))
    arrays = [jnp.float32(rng.normal(size=(WIDTH, len(part) + 8))) for part in ids]
    targets = jnp.asarray(rng.integers(0, NUM_TOKENS, (3, 5)))
    # One prediction that is right.
    kernel = jnp.concatenate([a[:, : len(part)] for a, part in zip(arrays, ids)], axis=1)
    targets = targets.at[1, 2].set(jnp.argmax(hidden[1, 2] @ kernel))
    actual = value_and_gradients(
        functools.partial(in_blocks, columns), hidden, arrays, ids, targets
    )
    expected = value_and_gradients(plain, hidden, arrays, ids, targets)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)
    assert actual[0][1][1][1, 2]


def test_a_frozen_kernel_has_no_backward_pass():
    """Only the forward pass over the blocks is left in the program."""
    hidden, frozen, own = jnp.ones((2, 3, WIDTH)), jnp.ones((WIDTH, 384)), jnp.ones((WIDTH, 128))
    targets = jnp.zeros((2, 3), jnp.int32)

    def loss(frozen, own):
        kernels = [(frozen, range(350)), (own, range(350, 400))]
        return jnp.sum(token_losses(hidden, targets, kernels, 128)[0])

    def loops(argument):
        program = jax.jit(jax.grad(loss, argument)).lower(frozen, own).compile()
        return program.as_text().count(" while(")

    assert (loops(0), loops(1)) == (2, 1)
