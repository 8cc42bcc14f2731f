"""Tables that map our parameter names to those of another framework, used in both directions.

    TABLE = [
        Row("layers.*.attention.q_proj.kernel", "encoder.layers.*.self_attn.q_proj.weight"),
        Row("embed_tokens", "model.embed_tokens.weight", AS_IS),
    ]

A `*` stands for a number, the same on both sides. If their name has one `*` more than ours, our
parameter holds all of their tensors, stacked along its first axis.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion.weights import Weights
from speechgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Conversion of a tensor's axes in both directions; the functions return views."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


AS_IS = Layout(lambda x: x, lambda x: x)
# Linear [out, in] <-> [in, out]; convolution [out, in, K] <-> [K, in, out].
REVERSED = Layout(np.transpose, np.transpose)
# Transposed convolution [in, out, K] <-> [K, in, out] with K reversed.
TRANSPOSED_CONV = Layout(
    lambda x: x.transpose(2, 0, 1)[::-1],
    lambda x: x[::-1].transpose(1, 2, 0),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One pattern of names: ours, theirs, and the layout of the axes."""

    ours: str
    theirs: str
    layout: Layout = REVERSED

    def names_of_theirs(self, name: str, shape: Sequence[int]) -> list[str] | None:
        """Names of the tensors that make up our parameter `name`; None if the row doesn't match it.

        "layers.0.q_proj.kernel" -> ["encoder.layers.0.q_proj.weight"]
        """
        found = re.fullmatch(re.escape(self.ours).replace(r"\*", r"(\d+)"), name)
        if not found:
            return None
        indices = found.groups()
        if not self.is_stacked:
            return [_fill(self.theirs, indices)]
        return [_fill(self.theirs, (*indices, i)) for i in range(shape[0])]

    @property
    def is_stacked(self) -> bool:
        """Our parameter holds several of their tensors along its first axis."""
        return self.theirs.count("*") > self.ours.count("*")


def read(
    table: Sequence[Row],
    weights: Weights,
    wanted: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> Iterator[tuple[str, np.ndarray]]:
    """Converts their tensors to our parameters, one by one.

    All names, dtypes and shapes are checked before the first tensor is read.

    Args:
      table: rows; the first that matches a name is used.
      weights: their tensors.
      wanted: name -> shape of all our parameters.
      ignored: patterns of their names that are left out.

    Raises:
      UserError: one of their tensors is missing, quantised, left over, of another shape, or holds a
        NaN.
    """
    found = {name: _find(table, name, shape) for name, shape in wanted.items()}
    needed = [name for _, names in found.values() for name in names]
    weights.check_floats(needed)
    _check_names(weights, needed, ignored)
    for name, (row, names) in found.items():
        shape = tuple(wanted[name][1:] if row.is_stacked else wanted[name])
        for their_name in names:
            _check_shape(weights, their_name, row.layout, shape)
    return (
        (name, _assemble(row, [*names], weights, wanted[name]))
        for name, (row, names) in found.items()
    )


def load_module(
    build: Callable[[], nnx.Module],
    table: Sequence[Row],
    weights: Weights,
    ignored: Iterable[str] = (),
) -> nnx.Module:
    """The module that `build` returns, with their weights; arguments and errors as in `read`."""
    graph, abstract = nnx.split(nnx.eval_shape(build))
    wanted = {name: x.shape for name, x in checkpoints.flatten(abstract).items()}
    arrays = dict(read(table, weights, wanted, ignored))
    return nnx.merge(graph, checkpoints.unflatten(abstract, arrays))


def write(
    table: Sequence[Row], parameters: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Converts our parameters to their tensors, one by one."""
    for name, array in parameters:
        row, names = _find(table, name, array.shape)
        parts = array if row.is_stacked else [array]
        for their_name, part in zip(names, parts, strict=True):
            yield their_name, np.ascontiguousarray(row.layout.to_theirs(part))


def _find(table: Sequence[Row], name: str, shape: Sequence[int]) -> tuple[Row, list[str]]:
    for row in table:
        if names := row.names_of_theirs(name, shape):
            return row, names
    raise UserError(
        f"{name} has no counterpart in the other format; this kind of model can't be converted."
    )


def _assemble(
    row: Row, names: Sequence[str], weights: Weights, shape: tuple[int, ...]
) -> np.ndarray:
    if not row.is_stacked:
        return np.ascontiguousarray(row.layout.to_ours(weights.read(names[0])))
    # JAX's promotion: of bfloat16 and float16 to float32.
    dtype = functools.reduce(jnp.promote_types, map(weights.dtype, names))
    stacked = np.empty(shape, dtype)
    for i, name in enumerate(names):
        stacked[i] = row.layout.to_ours(weights.read(name))
    return stacked


def _check_names(weights: Weights, needed: Sequence[str], ignored: Iterable[str]) -> None:
    if missing := sorted(set(needed) - weights.shapes.keys()):
        raise UserError(
            f"{weights.source} lacks {missing[0]}{_and_more(missing)}: its config and its weights"
            " don't belong together."
        )
    pattern = "|".join(re.escape(name).replace(r"\*", r"\d+") for name in ignored)
    rest = sorted(n for n in weights.shapes.keys() - set(needed) if not re.fullmatch(pattern, n))
    if rest:
        raise UserError(
            f"{weights.source} has an unexpected {rest[0]}{_and_more(rest)}: its config describes"
            " no such weights, or this kind of model is not known here."
        )


def _check_shape(weights: Weights, name: str, layout: Layout, expected: tuple[int, ...]) -> None:
    # A broadcast view of one number has the shape but takes no memory.
    expected = layout.to_theirs(np.broadcast_to(np.int8(0), expected)).shape
    if weights.shapes[name] != expected:
        raise UserError(
            f"{weights.source}: {name} has shape {weights.shapes[name]}; expected {expected} by its"
            " config."
        )


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _fill(pattern: str, indices: Iterable[str | int]) -> str:
    for index in indices:
        pattern = pattern.replace("*", str(index), 1)
    return pattern
