"""Sharding: the mesh, the table from logical axes to mesh axes, and the placement of batches.

Parameters name their logical axes ("vocab", "embed", ...: the model's `out_sharding=` names). Only
this module maps them to mesh axes:

    mesh = create_mesh(MeshConfig(data=1, fsdp=-1, model=1))       # every device on `fsdp`
    params = create_sharded(lambda: nnx.state(build()), mesh)      # each device makes its shards
    batch = place_batch(numpy_rows_of_this_process, mesh)          # one global array per key
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

MESH_AXES = ("data", "fsdp", "context", "model")

# Pairs of a logical axis and the mesh axis, or axes, over which it is sharded.
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Logical axis -> mesh axis, for parameters and activations. Weights are sharded over `fsdp` and
# `context` along `embed` (ZeRO-3) and over `model` along heads, MLP or vocabulary (Megatron); the
# batch over both data axes, and the length of its rows over `context`. The activations between
# layers, which remat saves, are also sharded along their width, `residual`. Attention needs whole
# rows: there the devices of `context` share the heads instead (Jacobs et al. 2023, "Ulysses").
LOGICAL_AXIS_RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    ("attention_heads", ("model", "context")),
    ("embed", ("fsdp", "context")),
    ("residual", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("head_dim", None),
    ("vocab", "model"),
    ("layers", None),
    ("rank", None),
)

# In decoding the weights stay where they are, and the activations of the few new tokens are summed
# and copied: gathering the weights, as training does, would move gigabytes for every token.
DECODING_RULES = tuple(
    (axis, None if axis in ("batch", "length", "residual") else mesh_axis)
    for axis, mesh_axis in LOGICAL_AXIS_RULES
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes.

    Attributes:
      data: number of replicas of the model, each with its own part of the batch; gradients are
        summed over them.
      fsdp: number of shards of the weights, the optimizer state and the batch.
      context: number of shards of each row of the batch, for long rows. The weights are sharded
        over it, too.
      model: number of shards of each layer: tensor parallelism. `context` times `model` must divide
        the number of heads (key heads are repeated in training if there are too few), and `model`
        the width of the MLP.
      slices: number of TPU slices joined by the data-centre network; `data` must be a multiple of
        it, so that only the gradient sum crosses the slow network.

    One of data, fsdp, context and model may be -1: the number of devices divided by the others.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    model: int = 1
    slices: int = 1

    def __post_init__(self):
        check_number("slices", self.slices, at_least=1)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int, int]:
    """MeshConfig(data=2, fsdp=-1) on 8 devices -> (2, 4, 1, 1), in the order of MESH_AXES.

    Raises:
      UserError: the mesh does not fill the devices.
    """
    sizes = [config.data, config.fsdp, config.context, config.model]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh {config}: sizes must be positive; one of data, fsdp, context and model may be"
            " -1."
        )
    if -1 in sizes:
        given = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = num_devices // given
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh {config} does not fill {num_devices} devices: data * fsdp * context * model"
            f" must be {num_devices}; set one of them to -1 to take what the others leave."
        )
    if sizes[0] % config.slices:
        raise UserError(
            f"mesh {config}: data must be a multiple of slices, got {sizes[0]} and {config.slices}."
        )
    data, fsdp, context, model = sizes
    return data, fsdp, context, model


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of `devices` (by default all), laid out so that neighbours have the fastest links.

    Raises:
      UserError: the mesh does not fill the devices, or they are not as many TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    if config.slices > 1:
        slice_shape = (shape[0] // config.slices, *shape[1:])
        try:
            grid = mesh_utils.create_hybrid_device_mesh(
                slice_shape, (config.slices, 1, 1, 1), devices, allow_split_physical_axes=True
            )
        except (ValueError, AttributeError) as error:  # GPUs and CPUs have no slices.
            raise UserError(
                f"mesh {config}: these devices are not {config.slices} TPU slices ({error}); set"
                " slices to the number of TPU slices; on GPUs and CPUs to 1."
            ) from error
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = LOGICAL_AXIS_RULES) -> Iterator[None]:
    """Maps logical axes to axes of `mesh` inside the block: build models and trace steps there."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        yield


@contextlib.contextmanager
def without_mesh() -> Iterator[None]:
    """Ends `use_mesh` for the block, in which programs are for one device."""
    with jax.set_mesh(Mesh(np.empty((), object), ())), nnx.logical_axis_rules(()):
        yield


def abstract(make: Callable, mesh: Mesh, *args: Any) -> Any:
    """Shapes, dtypes and shardings of `make(*args)`, without computing it."""
    with use_mesh(mesh):
        shapes = jax.eval_shape(make, *args)
        shardings = nnx.get_named_sharding(shapes, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def create_sharded(make: Callable, mesh: Mesh, *args: Any) -> Any:
    """`make(*args)`; each device computes only its own shards, so no host holds whole arrays."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(make, mesh, *args))
    with use_mesh(mesh):
        return jax.jit(make, out_shardings=shardings)(*args)


def mesh_of_processes() -> Mesh:
    """A mesh in which each process has one replica, sharded over its own devices (`fsdp`)."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    grid = np.array(devices).reshape(jax.process_count(), -1, 1, 1)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def copy_to_each_process(state: nnx.State) -> nnx.State:
    """A copy of arrays on the mesh of a run for each process, sharded over its own devices.

    All processes call it together. With one process the arrays are returned as they are.
    """
    if jax.process_count() == 1:
        return state
    mesh = mesh_of_processes()
    own = Mesh(mesh.devices[jax.process_index()][None], MESH_AXES, axis_types=mesh.axis_types)

    def copy(array: jax.Array, placement: NamedSharding) -> jax.Array:
        shards = [shard.data for shard in jax.device_put(array, placement).addressable_shards]
        placement = NamedSharding(own, placement.spec)
        return jax.make_array_from_single_device_arrays(array.shape, placement, shards)

    with use_mesh(mesh):
        placements = nnx.get_named_sharding(state, mesh)
    return jax.tree.map(copy, state, placements)


def batch_sharding(mesh: Mesh, ndim: int = 2) -> NamedSharding:
    """Sharding of a batch [B, T, ...]: rows over `data` and `fsdp`, their length over `context`."""
    return NamedSharding(mesh, PartitionSpec(*(("data", "fsdp"), "context")[:ndim]))


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Index of the share of every batch that this process reads, and the number of shares.

    Each process has its own share, except that processes whose devices form one group of `context`
    and `model` read the same rows.

    Raises:
      UserError: the mesh splits the batch unequally over the processes.
    """
    if jax.process_count() == 1:
        return 0, 1
    pieces = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    rows = collections.defaultdict(list)
    for row, group in enumerate(pieces):
        for process in {device.process_index for device in group}:
            rows[process].append(row)
    shares = sorted({tuple(own) for own in rows.values()})
    if sum(map(len, shares)) != len(pieces) or len({len(own) for own in shares}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)} gives the processes unequal shares of a batch: let `context`"
            " times `model` divide, or be a multiple of, the devices of a process."
        )
    return shares.index(tuple(rows[jax.process_index()])), len(shares)


def check_batch(shape: Sequence[int], mesh: Mesh) -> None:
    """Raises a UserError if a batch of shape [B, T, ...] or [B] does not divide over the mesh."""
    rows, length = (*shape, 0)[:2]
    pieces = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % pieces:
        raise UserError(
            f"batch of {rows} rows can't be sharded over data x fsdp = {pieces} pieces;"
            f" try a batch size of {math.ceil(rows / pieces) * pieces}."
        )
    context = mesh.shape["context"]
    if length % context:
        raise UserError(
            f"rows of length {length} can't be sharded over context = {context} pieces;"
            f" try a length of {math.ceil(length / context) * context}."
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """{key: [rows of this process, ...]} -> {key: global array [B, ...]}."""
    _, shares = process_share(mesh)
    placed = {}
    for key, own in batch.items():
        shape = (len(own) * shares, *own.shape[1:])
        check_batch(shape, mesh)
        sharding = batch_sharding(mesh, own.ndim)
        placed[key] = jax.make_array_from_process_local_data(sharding, own, shape)
    return placed
