"""Where a stage's parameters come from: random, or the checkpoint of the stage before."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.llama import Llama, LlamaConfig

# The parameters with one row a token, and which of their axes the rows lie along.
VOCABULARY_AXIS = {"embed_tokens": 0, "lm_head.kernel": 1}
ADAPTER = ("lora_a", "lora_b")


def initial_parameters(config: LlamaConfig, mesh: Mesh, *, start_from=None, seed=0) -> nnx.State:
    """All parameters of the model, each piece on the device that owns it.

    From a checkpoint, adapters that it lacks are fresh, and tokens that it lacks get the mean of
    its rows, so that they disturb no prediction (Hewitt 2021).

    Raises:
      UserError: the checkpoint is of another model.
    """

    def fresh():
        return nnx.state(Llama(config, rngs=nnx.Rngs(seed)), nnx.Param)

    if start_from is None:
        return sharding.create_sharded(fresh, mesh)
    abstract = sharding.abstract(fresh, mesh)
    targets = checkpoints.flatten(abstract)
    saved = checkpoints.parameter_shapes(start_from)
    adapter = {name for name in targets if name not in saved and name.endswith(ADAPTER)}
    _check_names(saved.keys(), targets.keys() - adapter, start_from)
    stored = {name: _stored(name, saved[name], targets[name], start_from) for name in saved}
    arrays = checkpoints.restore_parameters(start_from, stored)
    arrays |= _fresh_adapter(fresh, {name: targets[name].sharding for name in adapter}, mesh)
    num_tokens = number_of_tokens(start_from)
    if num_tokens != config.vocab_size:
        for name in VOCABULARY_AXIS.keys() & arrays.keys():
            arrays[name] = _grow(name, arrays[name], num_tokens, targets[name])
    return checkpoints.unflatten(abstract, arrays)


def number_of_tokens(checkpoint) -> int:
    """Tokens in use in a checkpoint; its arrays have padding rows besides."""
    return checkpoints.read_metadata(checkpoint)["model"]["vocab_size"]


def _check_names(saved, expected, start_from):
    for name in sorted(saved ^ expected):
        if name in expected:
            problem = f"lacks {name}"
        elif name.endswith(ADAPTER):
            problem = f"has the adapter {name}: give the model its lora, or merge it first"
        else:
            problem = f"has {name}, which this model lacks"
        raise UserError(f"checkpoint {start_from} {problem}.")


def _stored(name, saved, target, start_from) -> jax.ShapeDtypeStruct:
    """What to read for `target`: the checkpoint's shape, which may have another number of rows."""
    if saved.shape == target.shape:
        return target
    axis = VOCABULARY_AXIS.get(name)
    if axis is None or saved.shape[1 - axis] != target.shape[1 - axis]:
        raise UserError(
            f"checkpoint {start_from} has {name} of shape {saved.shape}, this model {target.shape}:"
            " start from a checkpoint of the same size."
        )
    # The checkpoint's rows may not divide over the mesh: for now every device gets them all.
    spec = [None if i == axis else axes for i, axes in enumerate(target.sharding.spec)]
    whole_rows = NamedSharding(target.sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(saved.shape, target.dtype, sharding=whole_rows)


def _fresh_adapter(fresh, shardings, mesh):
    """Those parameters of `fresh()` that have a sharding; the rest is never computed."""

    def adapter():
        parameters = checkpoints.flatten(fresh())
        return {name: parameters[name] for name in shardings}

    with sharding.use_mesh(mesh):
        return jax.jit(adapter, out_shardings=shardings)()


def _grow(name, array, num_tokens, target):
    """Rows of the old tokens, then their mean for every new token and every padding row."""

    @functools.partial(jax.jit, out_shardings=target.sharding)
    def grow(array):
        axis = VOCABULARY_AXIS[name]
        old = jax.lax.slice_in_dim(array, 0, num_tokens, axis=axis)
        missing = target.shape[axis] - num_tokens
        mean = jnp.mean(old, axis, keepdims=True)
        return jnp.concatenate([old, jnp.repeat(mean, missing, axis)], axis)

    return grow(array)
