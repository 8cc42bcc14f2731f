"""Matrix products and constraints that control the collectives of sharded arrays.

Arrays are described by logical axis names (`embed`, `heads`, ...); `sharding.LOGICAL_AXIS_RULES`
maps them to mesh axes. Without a mesh all of this is a plain matrix product.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.core import spmd
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

# One logical axis name, or None, per dimension.
Axes = Sequence[str | None]


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Shards `x` by its logical axes; returns it unchanged outside of `nnx.logical_axis_rules`."""
    if not spmd.get_logical_axis_rules():
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(axes))


def logical_spec(axes: Axes) -> PartitionSpec:
    """Maps logical axes to mesh axes by the rules in use; without rules nothing is sharded."""
    rules = dict(spmd.get_logical_axis_rules())
    return PartitionSpec(*map(rules.get, axes))


def target_platform() -> str:
    """Platform of the mesh in use, "tpu", "gpu" or "cpu", even if its devices aren't attached."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def shard_count(axis: str) -> int:
    """Number of devices over which the rules in use shard a logical axis; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(name, 1) for name in _mesh_axes(axis))


def _mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes of a logical axis."""
    (names,) = logical_spec((axis,))
    return (names,) if isinstance(names, str) else names or ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(
    x: jax.Array,  # [..., D]
    kernel: jax.Array,  # [D, F]
    axes: Axes,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """`x @ kernel`, [..., F], in `dtype` if given; the weight gradient is reduce-scattered.

    `axes` are the kernel's logical axes.
    """
    return _product("...d,df->...f", x, kernel, dtype)


def _matmul_forward(x, kernel, axes, dtype):
    return matmul(x, kernel, axes, dtype), (x, kernel)


def _matmul_backward(axes, dtype, residuals, grad):
    del dtype
    x, kernel = residuals
    grad = grad.astype(x.dtype)
    return _product("...f,df->...d", grad, kernel), weight_gradient(x, grad, axes)


matmul.defvjp(_matmul_forward, _matmul_backward)


def weight_gradient(
    x: jax.Array,  # [..., D]
    grad: jax.Array,  # [..., F]
    axes: Axes,
) -> jax.Array:
    """x^T grad, [D, F], summed over the devices' rows so that each gets only its own shard.

    `axes` are the kernel's logical axes. XLA would use an all-reduce, which gives every device the
    whole sum: twice the traffic.
    """
    if shard_count("embed") == 1 or "embed" not in axes:
        return _contract_rows(x, grad)
    sizes = jax.sharding.get_abstract_mesh().shape
    embed = _mesh_axes("embed")
    others = [name for name in (*_mesh_axes("batch"), *_mesh_axes("length")) if name not in embed]
    rows = logical_spec(("batch", "length")[: x.ndim - 1])
    inputs, outputs = logical_spec(_without_embed(axes))
    scatter = axes.index("embed")

    def summed(x, grad):
        # TPUs store shards of rows more efficiently than shards of columns.
        shard = _contract_rows(*((x, grad) if scatter == 0 else (grad, x)))
        for name in embed:
            if sizes[name] > 1:
                shard = reduce_scatter(shard, name, sizes[name])
        shard = jax.lax.psum(shard, others)
        return shard if scatter == 0 else shard.T

    return jax.shard_map(
        summed,
        in_specs=(PartitionSpec(*rows, inputs), PartitionSpec(*rows, outputs)),
        out_specs=logical_spec(axes),
        check_vma=False,
    )(x, grad)


def _contract_rows(x, grad):  # [..., D], [..., F] -> [D, F]
    return _product("...d,...f->df", x, grad)


def _product(spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`jnp.einsum` of two arrays of one dtype; the result has that dtype or the given one."""
    # XLA's CPU backend multiplies bfloat16 twice as fast as float32 if the result is float32, and
    # no faster if it isn't. Accelerators sum in float32 in any case, and may send 16-bit results.
    if dtype is None and target_platform() == "cpu":
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(x.dtype)
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)


# An einsum of arrays of any dtype that sums and returns float32.
float32_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def reduce_scatter(x: jax.Array, axis: str, size: int) -> jax.Array:  # [D, F] -> [D / size, F]
    """Sum of `x` over a mesh axis of `size` devices; each device keeps D / size rows.

    TPUs have no reduce-scatter over two dimensions of the torus at once, so this one takes two
    steps: 256 devices are 16 rings of 16; it first sums across the rings, then along each.
    """
    rings = math.isqrt(size)
    while size % rings:
        rings -= 1
    ring = size // rings
    across = [list(range(i, size, ring)) for i in range(ring)]
    along = [list(range(i * ring, (i + 1) * ring)) for i in range(rings)]
    for groups in (across, along):
        x = jax.lax.psum_scatter(x, axis, axis_index_groups=groups, tiled=True)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(kernel: jax.Array, axes: Axes) -> jax.Array:
    """Gathers a sharded kernel once, to be used in several products.

    Its gradient, summed over the products, stays sharded by `axes`, the kernel's logical axes.
    """
    return constrain(kernel, _without_embed(axes))


def _gather_forward(kernel, axes):
    return gather(kernel, axes), None


def _gather_backward(axes, _, grad):
    return (constrain(grad, axes),)


gather.defvjp(_gather_forward, _gather_backward)


def lookup(table: jax.Array, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows of a table [V, D] for ids [B, T], in `dtype`: [B, T, D].

    Each device reads its columns of the rows of all devices, and then exchanges them for its own
    rows: no device ever holds the whole table, or the gradient of it.
    """
    rows = table[ids].astype(dtype)
    if not spmd.get_logical_axis_rules():
        return rows
    embed = _mesh_axes("embed")
    shared = [
        tuple(name for name in _mesh_axes(axis) if name not in embed)
        for axis in ("batch", "length")
    ]
    columns = PartitionSpec(*shared, embed)
    return jax.lax.with_sharding_constraint(rows, columns)


def _without_embed(axes: Axes) -> list[str | None]:
    """Axes of a gathered array, which is not sharded along `embed`."""
    return [None if axis == "embed" else axis for axis in axes]
