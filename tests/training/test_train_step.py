"""The train step of a tiny LLaMA: losses, packing, accumulation, trainable parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy import CONFIG, UNITS, random_batch

from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.train_step import (
    TRAINABLE,
    TrainState,
    batch_metrics,
    forward,
    make_train_step,
)

pytestmark = pytest.mark.slow


def pack(batch):
    """All examples of a batch in one row, one segment each."""
    packed = {key: [] for key in batch}
    for row, weights in enumerate(batch["decoder_segment_ids"]):
        n = weights.sum()
        for key, value in batch.items():
            packed[key].append(value[row, :n] * (row + 1 if key.endswith("segment_ids") else 1))
    return {key: np.concatenate(value)[None] for key, value in packed.items()}


@functools.cache
def model_and_params(config=CONFIG, trainable="all"):
    return nnx.split(Llama(config, rngs=nnx.Rngs(0)), TRAINABLE[trainable], ...)


def train(batches, *, config=CONFIG, trainable="all", **kwargs):
    """States before and after some steps, frozen parameters, and the last metrics."""
    graphdef, params, frozen = model_and_params(config, trainable)
    tx = make_optimizer(AdamW(1e-2, schedule="constant"), len(batches))
    options = {"accumulation": 1, "loss_columns": 512, "seed": 0} | kwargs
    step = jax.jit(make_train_step(graphdef, tx, unit_ids=UNITS, **options))
    first = state = TrainState.create(params, tx)
    for batch in batches:
        state, metrics = step(state, frozen, batch)
    return first, state, frozen, metrics


def evaluate(graphdef, params, frozen, batch, loss_columns=512):
    """The metrics of a batch, without a step."""
    losses = forward(nnx.merge(graphdef, params, frozen), batch, loss_columns)
    return batch_metrics(*losses, batch, UNITS)


def mean(metric):
    return metric[0] / metric[1]


def test_loss_is_the_weighted_mean_cross_entropy():
    batch = random_batch([9, 5, 12])
    graphdef, params, frozen = model_and_params()
    metrics = evaluate(graphdef, params, frozen, batch)
    model = nnx.merge(graphdef, params, frozen)
    logits = nnx.jit(lambda model, *inputs: model.unembed(model(*inputs)))(
        model,
        batch["decoder_input_tokens"],
        batch["decoder_positions"],
        batch["decoder_segment_ids"],
    )
    log_probs = jax.nn.log_softmax(logits)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    losses = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    for name, where in {
        "loss": weights,
        "unit_loss": weights * (targets >= 40),
        "text_loss": weights * (targets < 40),
    }.items():
        np.testing.assert_allclose(
            mean(metrics[name]), np.average(losses, weights=where), rtol=1e-5
        )
    hits = np.argmax(logits, -1) == targets
    np.testing.assert_allclose(mean(metrics["accuracy"]), np.average(hits, weights=weights))
    np.testing.assert_allclose(mean(metrics["non_padding"]), 26 / 36)


def test_no_logits_of_the_whole_vocabulary():
    graphdef, params, frozen = model_and_params()
    batch = random_batch([64] * 4)

    def loss(params):
        return evaluate(graphdef, params, frozen, batch, loss_columns=32)["loss"][0]

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert "f32[4,64,32]" in text
    assert "f32[4,64,128]" not in text


def test_packed_loss_equals_unpacked():
    batch = random_batch([9, 5, 12])
    graphdef, params, frozen = model_and_params()
    unpacked, packed = (evaluate(graphdef, params, frozen, rows) for rows in (batch, pack(batch)))
    for name in ("loss", "text_loss", "unit_loss"):
        np.testing.assert_allclose(mean(packed[name]), mean(unpacked[name]), rtol=1e-5)


def test_accumulation_equals_one_large_batch():
    # Rows of very different lengths: a mean of the parts' means would differ.
    batches = [random_batch([12, 3, 9, 4, 5, 11], seed) for seed in range(3)]
    _, whole, _, whole_metrics = train(batches)
    _, parts, _, parts_metrics = train(batches, accumulation=3)
    for ours, large in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params)):
        np.testing.assert_allclose(ours, large, rtol=1e-4, atol=1e-5)
    for ours, large in zip(jax.tree.leaves(parts_metrics), jax.tree.leaves(whole_metrics)):
        np.testing.assert_allclose(ours, large, rtol=1e-4)


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"6 rows.* 4 parts; try a batch size of 8"):
        train([random_batch([5] * 6)], accumulation=4)


def test_lora_leaves_the_base_untouched():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, dropout=0.1))
    first, last, frozen, _ = train([random_batch([9, 5])] * 3, config=config, trainable="lora")
    names = {path[-1] for path, _ in nnx.to_flat_state(last.params)}
    assert names == {"lora_a", "lora_b"}
    assert not any(isinstance(x, nnx.LoRAParam) for _, x in nnx.to_flat_state(frozen))
    # Two moments per trained parameter, and optax's step counts; none for the base.
    trained = sum(x.size for x in jax.tree.leaves(last.params))
    assert sum(x.size for x in jax.tree.leaves(last.opt_state)) <= 2 * trained + 3
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(last.params))
    ]
    assert all(changed)


def test_only_embeddings_can_be_trained():
    _, last, frozen, _ = train([random_batch([9, 5])], trainable="embeddings")
    assert {path[0] for path, _ in nnx.to_flat_state(last.params)} == {"embed_tokens", "lm_head"}
    assert {path[0] for path, _ in nnx.to_flat_state(frozen)} == {"layers", "norm"}


def test_dropout_changes_with_the_step_only():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, dropout=0.5))
    batch = random_batch([9, 5])
    results = [train([batch] * 2, config=config, trainable="lora")[1].params for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_array_equal(a, b)
    graphdef, params, frozen = model_and_params(config, "lora")
    params = jax.tree.map(jnp.ones_like, params)
    model = nnx.merge(graphdef, params, frozen)
    losses = jax.jit(lambda key: forward(model, batch, 256, key)[0])
    dropped = [losses(jax.random.key(seed)) for seed in (0, 1)]
    assert not np.allclose(*dropped)


def test_a_small_batch_is_overfitted():
    _, _, _, metrics = train([random_batch([9, 5])] * 60)
    assert mean(metrics["loss"]) < 0.1
    assert mean(metrics["accuracy"]) == 1
    assert float(metrics["tokens"]) == 14


def test_gradient_norm_is_that_of_the_mean_loss():
    batch = random_batch([9, 5])
    graphdef, params, frozen = model_and_params()
    grad = jax.grad(lambda p: mean(evaluate(graphdef, p, frozen, batch)["loss"]))
    grads = jax.jit(grad)(params)
    _, _, _, metrics = train([batch])
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
