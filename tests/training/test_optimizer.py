"""Learning rate schedules, weight decay, clipping, moments in bfloat16, and the guard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy import CONFIG

from speechgpt_jax.checkpoints import flatten
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.training.optimizer import (
    AdamW,
    Guard,
    decay_mask,
    guarded,
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


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.03), (2, 0.9)])
def test_warmup_may_take_all_steps(schedule, steps, warmup):
    rate = learning_rate_schedule(AdamW(1.0, schedule, warmup=warmup), steps)
    np.testing.assert_allclose([rate(step) for step in range(steps)], np.arange(steps) / steps)


def test_cosine_is_above_linear_at_first():
    cosine = learning_rate_schedule(AdamW(1.0, "cosine", warmup=0), 100)
    linear = learning_rate_schedule(AdamW(1.0, "linear", warmup=0), 100)
    assert cosine(25) > linear(25)
    assert cosine(75) < linear(75)


def test_norms_are_not_decayed():
    params = nnx.state(nnx.eval_shape(lambda: Llama(CONFIG, rngs=nnx.Rngs(0))), nnx.Param)
    kept = {name for name, decayed in flatten(decay_mask(params)).items() if not decayed}
    assert kept == {
        "layers.input_layernorm.scale",
        "layers.post_attention_layernorm.scale",
        "norm.scale",
    }


def test_norms_of_the_vocoders_predictors_are_not_decayed():
    vocoder = nnx.eval_shape(lambda: UnitVocoder(VocoderConfig.tiny(), rngs=nnx.Rngs(0)))
    mask = flatten(decay_mask(nnx.state(vocoder.duration_predictor, nnx.Param)))
    kept = {name for name, decayed in mask.items() if not decayed}
    assert {"ln1.scale", "ln2.scale", "ln1.bias", "proj.bias"} <= kept
    assert {"proj.kernel"} <= mask.keys() - kept


@pytest.mark.slow
def test_weight_decay_shrinks_only_matrices():
    params = {"up_proj": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    tx = make_optimizer(AdamW(0.1, "constant", warmup=0, weight_decay=0.5), 10)
    state = tx.init(params)
    for _ in range(2):  # The rate of the very first step is zero.
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(updates["up_proj"], -0.05)
    np.testing.assert_allclose(updates["norm"], 0)


@pytest.mark.slow
def test_clipping():
    params = {"w": jnp.zeros(2)}
    tx = make_optimizer(AdamW(1.0, clip_norm=1.0), 10)
    _, state = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init(params), params)
    mu = optax.tree_utils.tree_get(state, "mu")["w"]
    np.testing.assert_allclose(mu, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def test_moments_in_half_the_memory():
    params = {"w": jnp.zeros(64)}
    grads = jax.random.normal(jax.random.key(0), (50, 64))

    @functools.partial(jax.jit, static_argnums=0)
    def learn(dtype):
        tx = make_optimizer(AdamW(1e-2, "constant", warmup=0, moments_dtype=dtype), 50)

        def step(state, grad):
            params, opt_state = state
            updates, opt_state = tx.update({"w": grad}, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    whole, _ = learn("float32")
    half, state = learn("bfloat16")
    moments = [optax.tree_utils.tree_get(state, name)["w"] for name in ("mu", "nu")]
    assert [x.dtype for x in moments] == [jnp.bfloat16] * 2
    assert optax.tree_utils.tree_get_all_with_path(state, "count")[0][1] == 50
    error = jnp.linalg.norm(whole["w"] - half["w"]) / jnp.linalg.norm(whole["w"])
    assert 0 < error < 0.02


def test_guard():
    tx = guarded(optax.sgd(1.0), Guard(spike=2.0))
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(2))
    losses = (4.0, 2.0, 6.1, 5.9, np.nan, 1.0, np.inf)
    rejected = []
    for loss in losses:
        updates, state = update(jnp.ones(2), state, None, value=loss)
        rejected.append(bool(state.rejected))
        np.testing.assert_array_equal(updates, 0.0 if rejected[-1] else -1.0)
    # Mean 3 after two losses: 6.1 is over twice that, 5.9 is not.
    assert rejected == [False, False, True, False, True, False, True]
    np.testing.assert_allclose(state.mean_loss, np.mean([4.0, 2.0, 5.9, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("moments_dtype", ["float32", "bfloat16"])
def test_a_rejected_batch_takes_its_step_of_the_schedule(moments_dtype):
    config = AdamW(1.0, "linear", warmup=0.25, moments_dtype=moments_dtype)
    tx = guarded(make_optimizer(config, 4), Guard())
    params = jnp.ones(2)
    state = tx.init(params)
    rates = []
    for loss in (2.0, np.nan, 2.0, 2.0, 2.0):
        updates, state = tx.update(params, state, params, value=loss)
        rates.append(-float(updates[0]))
    # Equal gradients: Adam's step is the rate. The moments count accepted batches only.
    np.testing.assert_allclose(rates, [0, 0, 2 / 3, 1 / 3, 0], atol=5e-3)
    counts = optax.tree_utils.tree_get_all_with_path(state, "count")
    assert {path[-1].tuple_name: int(count) for path, count in counts} == {
        "ScaleByAdamState": 4,
        "ScaleByScheduleState": 5,
    }


def test_a_gradient_that_is_not_finite_is_rejected_too():
    tx = guarded(optax.sgd(1.0, momentum=0.9), Guard())
    start = tx.init(jnp.zeros(2))
    updates, state = tx.update(jnp.array([1.0, np.nan]), start, None, value=1.0)
    np.testing.assert_array_equal(updates, 0)
    assert state.rejected and state.accepted == 0
    np.testing.assert_array_equal(state.inner[0].trace, start.inner[0].trace)
