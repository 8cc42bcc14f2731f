"""Schedules, what is decayed, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy import CONFIG

from speechgpt_jax.checkpoints import flatten
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.training.optimizer import (
    AdamW,
    decay_mask,
    learning_rate_schedule,
    make_optimizer,
)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_schedules(schedule, rates):
    rate = learning_rate_schedule(AdamW(1.0, schedule, warmup=0.2), 20)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 12, 20)], rates, atol=1e-6)


def test_cosine_is_above_linear_at_first():
    cosine = learning_rate_schedule(AdamW(1.0, "cosine", warmup=0), 100)
    linear = learning_rate_schedule(AdamW(1.0, "linear", warmup=0), 100)
    assert cosine(25) > linear(25)
    assert cosine(75) < linear(75)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule 'cosin' is unknown; take one of"):
        learning_rate_schedule(AdamW(1.0, "cosin"), 10)


def test_norms_are_not_decayed():
    params = nnx.state(nnx.eval_shape(lambda: Llama(CONFIG, rngs=nnx.Rngs(0))), nnx.Param)
    kept = {name for name, decayed in flatten(decay_mask(params)).items() if not decayed}
    assert kept == {
        "layers.input_layernorm.scale",
        "layers.post_attention_layernorm.scale",
        "norm.scale",
    }


def test_weight_decay_shrinks_matrices_alone():
    params = {"up_proj": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    tx = make_optimizer(AdamW(0.1, "constant", warmup=0, weight_decay=0.5), 10)
    state = tx.init(params)
    for _ in range(2):  # The rate of the very first step is zero.
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(updates["up_proj"], -0.05)
    np.testing.assert_allclose(updates["norm"], 0)


def test_clipping():
    params = {"w": jnp.zeros(2)}
    tx = make_optimizer(AdamW(1.0, clip_norm=1.0), 10)
    _, state = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init(params), params)
    mu = optax.tree_utils.tree_get(state, "mu")["w"]
    np.testing.assert_allclose(mu, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)
