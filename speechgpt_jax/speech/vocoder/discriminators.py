"""HiFi-GAN's discriminators (Kong et al. 2020, arXiv 2010.05646, section 2.3) and their losses.

Shapes: B batch, S samples, T steps, C channels. Weights are plain, without weight norm.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number, check_sizes


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the multi-period and the multi-scale discriminators; the defaults are the paper's.

    Attributes:
      periods: sub-discriminator i takes every `periods[i]`-th sample.
      period_channels: channels of their convolutions (kernel 5, stride 3; stride 1 in the last).
      scales: number of multi-scale sub-discriminators; number i, from 0, takes sound downsampled by
        2 ** i.
      scale_channels, scale_strides, scale_groups: channels, strides and groups of their
        convolutions (kernel 15 in the first, 5 in the last, 41 in the others).
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    scales: int = 3
    scale_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_strides: tuple[int, ...] = (1, 2, 2, 4, 4, 1, 1)
    scale_groups: tuple[int, ...] = (1, 4, 16, 16, 16, 16, 1)

    def __post_init__(self):
        check_sizes(periods=self.periods)
        check_sizes(period_channels=self.period_channels)
        check_number("scales", self.scales, at_least=1)
        check_sizes(
            scale_channels=self.scale_channels,
            scale_strides=self.scale_strides,
            scale_groups=self.scale_groups,
        )
        if len(self.scale_channels) < 2:
            raise UserError(
                f"scale_channels {self.scale_channels} must be at least two: the first convolution"
                " and the last have kernels of their own."
            )
        for inputs, outputs, groups in zip(
            (1, *self.scale_channels), self.scale_channels, self.scale_groups
        ):
            if inputs % groups or outputs % groups:
                raise UserError(
                    f"scale_groups {groups} must divide the channels {inputs} and {outputs} of its"
                    " convolution."
                )


class ConvStack(nnx.Module):
    """Convolutions with LeakyReLU 0.1 and a last one with a single channel."""

    def __init__(
        self,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        groups: Sequence[int],
        *,
        rngs: nnx.Rngs,
    ):
        inputs = (1, *channels[:-1])
        rows = zip(inputs, channels, kernel_sizes, strides, groups, strict=True)
        self.convs = nnx.List([_conv(*row, rngs) for row in rows])
        self.conv_post = _conv(channels[-1], 1, 3, 1, 1, rngs)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, T, 1] -> output of every layer; the last is the score: 1 real, 0 synthesized."""
        features = []
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), 0.1)
            features.append(x)
        return [*features, self.conv_post(x)]


def _conv(
    inputs: int, outputs: int, kernel_size: int, stride: int, groups: int, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution [B, T, inputs] -> [B, ceil(T / stride), outputs], for odd kernels."""
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size,
        stride,
        padding=(kernel_size - 1) // 2,
        feature_group_count=groups,
        rngs=rngs,
    )


class Discriminators(nnx.Module):
    """Multi-period and multi-scale discriminators.

    Checkpoints name the parameters by these attributes.
    """

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.periods = config.periods
        depth = len(config.period_channels)
        self.of_periods = nnx.List(
            [
                ConvStack(
                    config.period_channels,
                    (5,) * depth,
                    (3,) * (depth - 1) + (1,),
                    (1,) * depth,
                    rngs=rngs,
                )
                for _ in config.periods
            ]
        )
        kernel_sizes = (15,) + (41,) * (len(config.scale_channels) - 2) + (5,)
        sizes = (config.scale_channels, kernel_sizes, config.scale_strides, config.scale_groups)
        self.of_scales = nnx.List([ConvStack(*sizes, rngs=rngs) for _ in range(config.scales)])

    def __call__(self, wav: jax.Array) -> list[list[jax.Array]]:
        """wav [B, S] -> for each sub-discriminator the outputs of its layers."""
        by_period = [
            stack(columns(wav, period)) for period, stack in zip(self.periods, self.of_periods)
        ]
        by_scale, x = [], wav[..., None]
        for stack in self.of_scales:
            by_scale.append(stack(x))
            x = nnx.avg_pool(x, (4,), (2,), [(2, 2)])
        return by_period + by_scale


def columns(wav: jax.Array, period: int) -> jax.Array:
    """[B, S] -> [B * period, ceil(S / period), 1]; a row has every `period`-th sample."""
    wav = jnp.pad(wav, ((0, 0), (0, -wav.shape[1] % period)), mode="reflect")
    return wav.reshape(len(wav), -1, period).swapaxes(1, 2).reshape(len(wav) * period, -1, 1)


def discriminator_loss(
    real: Sequence[Sequence[jax.Array]], synthesized: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """Least-squares GAN loss (Mao et al. 2017): target 1 for recordings, 0 for synthesized sound.

    real, synthesized: outputs of `Discriminators`, [..., T, C] of each layer.
    """
    pairs = zip(real, synthesized)
    return sum(((1 - r[-1]) ** 2).mean() + (s[-1] ** 2).mean() for r, s in pairs)


def adversarial_loss(synthesized: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Least-squares GAN loss of the generator: target 1 for synthesized sound.

    synthesized: outputs of `Discriminators`, [..., T, C] of each layer.
    """
    return sum(((1 - s[-1]) ** 2).mean() for s in synthesized)


def feature_loss(
    real: Sequence[Sequence[jax.Array]], synthesized: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """Feature matching (Larsen et al. 2016): L1 distance of the layers' outputs.

    real, synthesized: outputs of `Discriminators`, [..., T, C] of each layer.
    """
    pairs = zip(real, synthesized)
    return sum(jnp.abs(a - b).mean() for r, s in pairs for a, b in zip(r[:-1], s[:-1]))
