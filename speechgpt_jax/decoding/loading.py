"""Language models, loaded from training runs or copied from a run in progress, for decoding."""

import math
import os

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.collectives import target_platform
from speechgpt_jax.models.layers import Dense
from speechgpt_jax.models.llama import DECODING_SIZES, SHARDED_SIZES, Llama, check_mesh
from speechgpt_jax.models.llama_config import DType, LlamaConfig


def decoding_dtype(config: LlamaConfig, dtype: DType | None = None) -> DType:
    """The dtype in which a model is decoded: the given one, else on a CPU float32, else its own.

    A CPU takes up to ten times longer for a token in bfloat16.
    """
    return dtype or ("float32" if target_platform() == "cpu" else config.dtype)


def load_llama(
    run: str | os.PathLike,
    devices: int | None = None,
    dtype: DType | None = None,
    *,
    int8: bool = False,
) -> tuple[Llama, Mesh | None]:
    """The newest checkpoint of a run, with an adapter's base, in the dtype of decoding.

    Only what decoding still computes with, the weights under adapters and those that are rounded to
    int8, stays in float32.

    Args:
      run: its folder.
      devices: number of this process's devices over which heads, MLP and vocabulary are sharded;
        None: the model is on the first one, without a mesh.
      dtype, int8: those of `Engine`.

    Returns:
      The model, and its mesh for `Engine`.

    Raises:
      UserError: there is no checkpoint, or the number doesn't fit the devices or the model.
    """
    config = LlamaConfig.from_metadata(checkpoints.read_metadata(run), run)
    mesh = decoding_mesh(config, devices)

    def build(fields: dict) -> Llama:
        model = build_llama(fields)
        nnx.update(model, _cast(model, decoding_dtype(config, dtype), int8))
        return model

    # A mesh of one device, since JAX's first device may be another process's.
    model = checkpoints.load_model(run, build, mesh or decoding_mesh(config, 1))
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, _placed(state, mesh)), mesh


def decoding_mesh(config: LlamaConfig, devices: int | None) -> Mesh | None:
    """A mesh of this process's first devices over which a model is sharded; None: no mesh.

    Raises:
      UserError: this host has fewer devices, or the number doesn't divide the model's sizes.
    """
    if devices is None:
        return None
    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        raise UserError(
            f"the number of devices (--mesh) {devices} must be from 1 to {len(local)}, the devices"
            " of this host: every host decodes on its own."
        )
    sizes = sharding.MeshConfig(data=1, fsdp=1, model=devices)
    mesh = sharding.create_mesh(sizes, local[:devices])
    check_mesh(config, mesh, DECODING_SIZES)
    return mesh


def copy_for_decoding(
    model: Llama, devices: int | None = None, dtype: DType | None = None
) -> tuple[Llama, Mesh | None]:
    """A copy, in the dtype of decoding, of a model that a run trains; for each process its own.

    All processes of the run call it together.

    Args:
      model: the model, on the mesh of the run.
      devices: number of this process's devices over which the copy is sharded; None: as many as the
        model can be sharded over.
      dtype: that of `Engine`.

    Returns:
      The copy, and its mesh for `Engine`.

    Raises:
      UserError: see `check_copy`.
    """
    mesh = _mesh_of_copy(model.config, devices)
    state = _cast(model, decoding_dtype(model.config, dtype), int8=False)
    state = _placed(sharding.copy_to_each_process(state), mesh)
    return nnx.merge(nnx.graphdef(model), state), mesh


def check_copy(config: LlamaConfig, devices: int | None) -> None:
    """Raises a UserError if `copy_for_decoding` can't shard a model over `devices`."""
    _mesh_of_copy(config, devices)
    if jax.process_count() > 1:
        check_mesh(config, sharding.mesh_of_processes(), SHARDED_SIZES)


def _mesh_of_copy(config: LlamaConfig, devices: int | None) -> Mesh | None:
    """The mesh of `copy_for_decoding`."""
    if devices is None:
        sizes = [getattr(config, name) for name, axes in DECODING_SIZES.items() if "model" in axes]
        common = math.gcd(*sizes)
        counts = range(1, jax.local_device_count() + 1)
        devices = max(count for count in counts if common % count == 0)
    return decoding_mesh(config, None if devices == 1 else devices)


def build_llama(fields: dict) -> Llama:
    """A model from the fields of its LlamaConfig, which checkpoints hold as metadata."""
    return Llama(LlamaConfig.from_dict(fields), rngs=nnx.Rngs(0))


def _cast(model: Llama, dtype: DType, int8: bool) -> nnx.State:
    """The parameters in `dtype`, but for those with which `make_decoder` computes in float32."""

    def is_computed(path: tuple, node: Dense) -> bool:
        is_rounded = int8 and path[0] == "layers"
        return is_rounded or node.lora is not None or node.kernel_scale is not None

    denses = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, Dense)]
    computed = [path for path, node in denses if is_computed(path, node)]

    def cast(path: tuple, weights: nnx.Variable) -> nnx.Variable:
        is_float = jnp.issubdtype(weights[...].dtype, jnp.floating)
        if path[:-1] in computed or not is_float:
            return weights
        return weights.replace(weights[...].astype(dtype))

    return nnx.map_state(cast, nnx.state(model, nnx.Param))


def _placed(state: nnx.State, mesh: Mesh | None) -> nnx.State:
    """The parameters on a mesh of this process's devices; None: on its first device."""
    if mesh is None:
        return jax.device_put(state, jax.local_devices()[0])
    with sharding.use_mesh(mesh):
        return jax.device_put(state, nnx.get_named_sharding(state, mesh))
