"""Weight normalisation (Salimans and Kingma 2016), w = g v / |v|: (g, v) <-> w."""

from collections.abc import Iterable, Mapping

import numpy as np

from speechgpt_jax.errors import UserError

# PyTorch's names of g and v, in the old and in the new (parametrizations) weight_norm.
NAMES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"conv.weight_g": g, "conv.weight_v": v, ...} -> {"conv.weight": w, ...}.

    Raises:
      UserError: a tensor has a g but no v, or one of another shape.
    """
    folded = dict(tensors)
    for g_name, v_name in NAMES:
        for name in [n.removesuffix(g_name) for n in tensors if n.endswith(f".{g_name}")]:
            g, v = folded.pop(name + g_name), folded.pop(name + v_name, None)
            if v is None:
                raise UserError(
                    f"the checkpoint has {name}{g_name} but no {name}{v_name}; get it again."
                )
            if g.ndim != v.ndim or any(a not in (1, b) for a, b in zip(g.shape, v.shape)):
                raise UserError(
                    f"the checkpoint has {name}{g_name} of shape {g.shape} and {name}{v_name} of"
                    f" shape {v.shape}, which don't belong together; get it again."
                )
            # The norm is taken over the axes along which g has size 1.
            axes = tuple(axis for axis, size in enumerate(g.shape) if size == 1)
            norms = np.sqrt(np.square(v, dtype=np.float64).sum(axes, keepdims=True))
            with np.errstate(invalid="ignore"):  # NaN of a v of zeros is reported when it is read.
                folded[name + "weight"] = (g * (v / norms)).astype(v.dtype)
    return folded


def unfold(
    tensors: Mapping[str, np.ndarray], names: Iterable[str], axis: int
) -> dict[str, np.ndarray]:
    """The inverse of `fold` for the weights `names`; their g lies along `axis`."""
    unfolded = dict(tensors)
    for name in names:
        v = unfolded.pop(name)
        axes = tuple(i for i in range(v.ndim) if i != axis)
        unfolded[f"{name}_g"] = np.sqrt(np.square(v).sum(axes, keepdims=True))
        unfolded[f"{name}_v"] = v
    return unfolded
