"""Pytrees as arrays by name, and their checksums."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree: Any) -> dict[str, jax.Array]:
    """{"params.layers.mlp.up_proj.kernel": array, ...}: names by the path in the pytree.

    The `.value` of Flax variables is left out.
    """
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name.removesuffix(".value")] = leaf
    return named


def unflatten(like: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """The inverse of `flatten`, in the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in flatten(like)])


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """Sum of each array's elements, modulo 2^32; the same on any mesh.

    The bits of an element are read as an unsigned integer of its own width.
    """
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        # XLA would first copy a 16-bit array to 32 bits, twice its size.
        return {name: bit_sum_on_host(np.asarray(x)) for name, x in arrays.items()}
    return {name: int(value) for name, value in jax.device_get(_bit_sums(dict(arrays))).items()}


@jax.jit
def _bit_sums(arrays):
    def bit_sum(x):
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jnp.sum(words.astype(jnp.uint32))

    return jax.tree.map(bit_sum, arrays)


def bit_sum_on_host(x: np.ndarray) -> int:
    """Checksum of one array on the host, without a copy of it."""
    return int(x.view(f"uint{8 * x.itemsize}").sum(dtype=np.uint32))
