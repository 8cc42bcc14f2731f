"""Inference-only copies of models; on a CPU some of their layers are replaced by faster ones."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from speechgpt_jax.speech.cpu.attention import attend_by_segment
from speechgpt_jax.speech.cpu.devices import backend_is_cpu
from speechgpt_jax.speech.cpu.toom_cook import StridedToomCookConv, ToomCookConv
from speechgpt_jax.speech.encoder import front_ends
from speechgpt_jax.speech.encoder.hubert import Attention, Hubert
from speechgpt_jax.speech.vocoder.hifigan import ResidualBlock

Model = TypeVar("Model", bound=nnx.Module)

# HiFi-GAN's convolutions of at least this many taps and channels are faster by Toom and Cook's
# algorithm; in smaller ones the additions cost more than the products saved.
MIN_TAPS, MIN_CHANNELS = 7, 64


def for_inference(model: Model, dtype: DTypeLike = jnp.float32) -> Model:
    """Inference-only copy of a HuBERT or a unit vocoder (arrays are shared, not copied).

    The copy computes the same up to rounding. On a CPU some of its layers are replaced by faster
    ones, which hold values derived from the kernels: later changes of the kernels have no effect.

    Args:
      model: a module that is, or contains, a `Hubert` or a `Generator`.
      dtype: type of the factors of all products except those of the first convolution. Sums, norms
        and softmax stay float32. bfloat16 is for HuBERT only.
    """
    model = nnx.merge(*nnx.split(model))
    nnx.update(model, nnx.map_state(_cast_kernel(dtype), nnx.state(model, nnx.Param)))
    if backend_is_cpu():
        for _, module in list(nnx.iter_modules(model)):
            _replace_layers(module)
    return model


def _cast_kernel(dtype: DTypeLike) -> Callable[[tuple, nnx.Param], nnx.Param]:
    def cast(path: tuple, parameter: nnx.Param) -> nnx.Param:
        # The first convolution reads one channel of samples, which need float32.
        is_factor = path[-1] == "kernel" and parameter.shape[-2] > 1
        return parameter.replace(parameter[...].astype(dtype)) if is_factor else parameter

    return cast


def _replace_layers(module: nnx.Module) -> None:
    """Replaces the layers of one module, not those of the modules in it."""
    if isinstance(module, Hubert):
        module.front_end = RowByRow(module.front_end)
    elif isinstance(module, front_ends.WaveFrontEnd):
        first, *others = module.conv_layers
        module.conv_layers = nnx.List([first, *map(_fast_front_end_conv, others)])
    elif isinstance(module, Attention):
        module.attend_to_all = attend_by_segment
    elif isinstance(module, ResidualBlock):
        taps, channels, _ = module.convs1[0].kernel.shape
        if taps >= MIN_TAPS and channels >= MIN_CHANNELS:
            module.convs1 = nnx.List(map(ToomCookConv, module.convs1))
            module.convs2 = nnx.List(map(ToomCookConv, module.convs2))


def _fast_front_end_conv(conv: front_ends.Conv) -> nnx.Module:
    if conv.kernel.dtype != jnp.float32:
        return TapByTapConv(conv)
    return StridedToomCookConv(conv) if (conv.kernel.shape[0], conv.stride) == (3, 2) else conv


class RowByRow(nnx.Module):
    """A front end that computes one row of the batch after another, to stay in a core's cache."""

    def __init__(self, front_end: nnx.Module):
        self.front_end = front_end
        self.statistics, self.pool_statistics = front_end.statistics, front_end.pool_statistics

    def __call__(self, wav: jax.Array, statistics: front_ends.Statistics) -> jax.Array:
        """wav [B, S], statistics [B, ...] -> [B, T, D]."""

        def project_row(row):
            return self.front_end(*jax.tree.map(lambda x: x[None], row))[0]

        return lax.map(project_row, (wav, statistics))


class TapByTapConv(nnx.Module):
    """A `front_ends.Conv` of bfloat16 as one matrix product per tap.

    CPUs multiply bfloat16 matrices fast, but XLA has no fast bfloat16 convolution for them.
    """

    def __init__(self, conv: front_ends.Conv):
        self.kernel, self.bias, self.stride = conv.kernel, conv.bias, conv.stride

    def __call__(self, x: jax.Array) -> jax.Array:
        x, taps = x.astype(self.kernel.dtype), len(self.kernel[...])
        steps = (x.shape[1] - taps) // self.stride + 1
        y = sum(
            jnp.matmul(
                x[:, tap :: self.stride][:, :steps],
                self.kernel[tap],
                preferred_element_type=jnp.float32,
            )
            for tap in range(taps)
        )
        return y if self.bias is None else y + self.bias[...]
