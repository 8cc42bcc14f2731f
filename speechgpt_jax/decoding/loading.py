"""Language models of training runs, loaded for decoding."""

import os

import jax
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import DECODING_SIZES, Llama, check_mesh
from speechgpt_jax.models.llama_config import LlamaConfig


def load_llama(run: str | os.PathLike, devices: int | None = None) -> tuple[Llama, Mesh | None]:
    """The newest checkpoint of a run, with an adapter's base.

    Args:
      run: its folder.
      devices: number of this process's devices over which heads, MLP and vocabulary are sharded;
        None: the model is on the first one, without a mesh.

    Returns:
      The model, and its mesh for `Engine`.

    Raises:
      UserError: there is no checkpoint, or the number doesn't fit the devices or the model.
    """
    if devices is None:
        return checkpoints.load_model(run, build_llama), None
    local = jax.local_devices()
    check_number("the number of devices (--mesh)", devices, at_least=1, at_most=len(local))
    config = LlamaConfig.from_metadata(checkpoints.read_metadata(run), run)
    sizes = sharding.MeshConfig(data=1, fsdp=1, model=devices)
    mesh = sharding.create_mesh(sizes, local[:devices])
    check_mesh(config, mesh, DECODING_SIZES)
    return checkpoints.load_model(run, build_llama, mesh), mesh


def build_llama(fields: dict) -> Llama:
    """A model from the fields of its LlamaConfig, which checkpoints hold as metadata."""
    return Llama(LlamaConfig.from_dict(fields), rngs=nnx.Rngs(0))
