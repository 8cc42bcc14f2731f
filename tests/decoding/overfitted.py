"""A tiny LLaMA that knows some texts by heart."""

import dataclasses
import fcntl
import functools
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from speechgpt_jax.models.llama import Llama
from tests.sizes import llama


def learn_by_heart(texts: list[list[int]], vocab_size: int) -> Llama:
    """A model that writes each of `texts`, token ids, after its beginning."""
    config = dataclasses.replace(
        llama("tiny", vocab_size),
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
    )
    graphdef, params = nnx.split(Llama(config, rngs=nnx.Rngs(0)))
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:  # A benchmark.
        return nnx.merge(graphdef, _learn(graphdef, params, texts))
    # pytest's workers share the model, as they share compiled programs.
    name = hashlib.sha256(repr((config, texts)).encode()).hexdigest()
    shared = Path(folder) / f"learnt_{name[:16]}.npz"
    with open(shared.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            learnt = _learn(graphdef, params, texts)
            np.savez(shared, *map(np.asarray, jax.tree.leaves(learnt)))
    with np.load(shared) as arrays:
        leaves = [jnp.asarray(array) for array in arrays.values()]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), leaves))


def _learn(graphdef: nnx.GraphDef, params: nnx.State, texts: list[list[int]]) -> nnx.State:
    optimizer = optax.adam(4e-3)
    longest = max(map(len, texts))
    tokens = jnp.array([text + [0] * (longest - len(text)) for text in texts])
    lengths = jnp.array(list(map(len, texts)))
    weights = jnp.arange(1, longest) < lengths[:, None]

    # It runs longer than it compiles.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def step(params, opt_state):
        def loss_fn(params):
            model = nnx.merge(graphdef, params)
            logits = model.unembed(model(tokens[:, :-1]))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return (losses * weights).sum() / weights.sum()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(200):
        params, opt_state = step(params, opt_state)
    return params
