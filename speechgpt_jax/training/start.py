"""The initial parameters of a stage: random, or from a checkpoint of the previous stage."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.training.progress import print_once

# Parameters with one row per token, and the axis of the rows.
VOCABULARY_AXIS = {"embed_tokens": 0, "lm_head.kernel": 1}
# Rows (or columns) of an adapter's new tokens, and the parameter whose rows they replace.
NEW_ROWS = {"new_embeddings": "embed_tokens", "new_outputs": "lm_head.kernel"}
LOW_RANK = ("lora_a", "lora_b")
ADAPTER = (*LOW_RANK, *NEW_ROWS)


def initial_parameters(
    config: LlamaConfig, mesh: Mesh, *, start_from: str | None = None, seed: int = 0
) -> nnx.State:
    """All parameters of the model, sharded over the mesh.

    Adapters that the checkpoint `start_from` lacks are initialised; their new tokens start with the
    checkpoint's rows. Tokens that it lacks get the mean of its rows, which hardly changes the
    predictions (Hewitt 2021); tokens that it has beyond `config.vocab_size` are dropped.

    Raises:
      UserError: the checkpoint is of another model.
    """

    def fresh():
        return nnx.state(Llama(config, rngs=nnx.Rngs(seed)), nnx.Param)

    if start_from is None:
        return sharding.create_sharded(fresh, mesh)
    abstract = sharding.abstract(fresh, mesh)
    targets = checkpoints.flatten(abstract)
    parameters = checkpoints.Parameters(start_from)
    saved = parameters.shapes
    adapter = {name for name in targets if name not in saved and name.endswith(ADAPTER)}
    _check_names(saved.keys(), targets.keys() - adapter, start_from)
    source = LlamaConfig.from_metadata(parameters.metadata, start_from)
    check_heads(config, source, start_from)
    compare_numerics(config, source, start_from)
    stored = {name: _stored(name, saved[name], targets[name], start_from) for name in saved}
    arrays = parameters.restore(stored)
    low_rank = adapter - NEW_ROWS.keys()
    arrays |= _fresh_adapter(fresh, {name: targets[name].sharding for name in low_rank}, mesh)
    num_tokens = number_of_tokens(start_from)
    if num_tokens > config.vocab_size:
        print_once(
            f"The tokenizer has {config.vocab_size} tokens, {start_from} has {num_tokens}: the last"
            f" {num_tokens - config.vocab_size} embeddings of the checkpoint are dropped."
        )
    if num_tokens != config.vocab_size:
        for name in VOCABULARY_AXIS.keys() & arrays.keys():
            kept = min(num_tokens, config.vocab_size)
            arrays[name] = _resize(name, arrays[name], kept, targets[name])
    for name in adapter & NEW_ROWS.keys():
        table, axis = NEW_ROWS[name], VOCABULARY_AXIS[NEW_ROWS[name]]
        arrays[name] = _rows(arrays[table], config.new_tokens, axis, targets[name])
    return checkpoints.unflatten(abstract, arrays)


def number_of_tokens(checkpoint: str) -> int:
    """Number of tokens in use in a checkpoint; its arrays also have padding rows."""
    return LlamaConfig.from_metadata(checkpoints.read_metadata(checkpoint), checkpoint).vocab_size


def _check_names(saved, expected, start_from):
    for name in sorted(saved ^ expected):
        if name in expected:
            problem = f"lacks {name}"
        elif name.endswith(ADAPTER):
            problem = f"has the adapter {name}: set LlamaConfig.lora, or merge the adapter first"
        else:
            problem = f"has {name}, which this model lacks"
        raise UserError(f"checkpoint {start_from} {problem}.")


def check_heads(config: LlamaConfig, saved: LlamaConfig, checkpoint: str) -> None:
    """Raises a UserError if a checkpoint has other heads, which shapes of parameters don't show."""
    for name in ("num_heads", "num_kv_heads", "head_dim"):
        if getattr(config, name) != getattr(saved, name):
            raise UserError(
                f"checkpoint {checkpoint} has {name} {getattr(saved, name)}, this model"
                f" {getattr(config, name)}: use the sizes of the checkpoint."
            )


def compare_numerics(config: LlamaConfig, saved: LlamaConfig, checkpoint: str) -> None:
    """Prints the values of RoPE, norms and adapters in which a checkpoint differs."""
    for name in ("rope_theta", "rope_scaling", "rms_norm_eps"):
        if getattr(config, name) != getattr(saved, name):
            print_once(
                f"{name} is {getattr(config, name)} in this run and {getattr(saved, name)} in"
                f" {checkpoint}; is that meant?"
            )
    if saved.lora and config.lora and saved.lora.scale != config.lora.scale:
        print_once(
            f"The adapter's output is multiplied by {config.lora.scale:g} in this run and by"
            f" {saved.lora.scale:g} in {checkpoint} (alpha and rank_stabilized of LoraConfig); is"
            " that meant?"
        )


def _stored(name, saved, target, start_from) -> jax.ShapeDtypeStruct:
    """Shape to read for `target`; the checkpoint may have another number of vocabulary rows."""
    if saved.shape == target.shape:
        return target
    axis = VOCABULARY_AXIS.get(name)
    if axis is None or saved.shape[1 - axis] != target.shape[1 - axis]:
        raise UserError(
            f"checkpoint {start_from} has {name} of shape {saved.shape}, this model {target.shape}:"
            " start from a checkpoint of the same size."
        )
    # The checkpoint's rows may not divide over the mesh: every device gets all of them for now.
    spec = [None if i == axis else axes for i, axes in enumerate(target.sharding.spec)]
    whole_rows = NamedSharding(target.sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(saved.shape, target.dtype, sharding=whole_rows)


def _fresh_adapter(fresh, shardings, mesh):
    """The parameters of `fresh()` that `shardings` names; the others are not computed."""

    def adapter():
        parameters = checkpoints.flatten(fresh())
        return {name: parameters[name] for name in shardings}

    with sharding.use_mesh(mesh):
        return jax.jit(adapter, out_shardings=shardings)()


def _rows(array: jax.Array, ids: range, axis: int, target: jax.ShapeDtypeStruct) -> jax.Array:
    """A copy of the rows `ids` of `array` along `axis`."""

    @functools.partial(jax.jit, out_shardings=target.sharding)
    def rows(array):
        return jax.lax.slice_in_dim(array, ids.start, ids.stop, axis=axis)

    return rows(array)


def _resize(name: str, array: jax.Array, kept: int, target: jax.ShapeDtypeStruct) -> jax.Array:
    """The first `kept` rows, then their mean for every new token and every padding row."""

    @functools.partial(jax.jit, out_shardings=target.sharding)
    def resize(array):
        axis = VOCABULARY_AXIS[name]
        old = jax.lax.slice_in_dim(array, 0, kept, axis=axis)
        missing = target.shape[axis] - kept
        mean = jnp.mean(old, axis, keepdims=True)
        return jnp.concatenate([old, jnp.repeat(mean, missing, axis)], axis)

    return resize(array)
