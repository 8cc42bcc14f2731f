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
      UserError: a tensor has a g but no v.
    """
    folded = dict(tensors)
    for g_name, v_name in NAMES:
        for name in [n.removesuffix(g_name) for n in tensors if n.endswith(f".{g_name}")]:
            g, v = folded.pop(name + g_name), folded.pop(name + v_name, None)
            if v is None:
                raise UserError(
                    f"the checkpoint has {name}{g_name} but no {name}{v_name}; get it again."
                )
            # The norm is taken over the axes along which g has size 1.
            axes = tuple(axis for axis, size in enumerate(g.shape) if size == 1)
            folded[name + "weight"] = g * v / np.sqrt(np.square(v).sum(axes, keepdims=True))
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
