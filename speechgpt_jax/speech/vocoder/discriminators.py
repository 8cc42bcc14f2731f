"""HiFi-GAN's discriminators (Kong et al. 2020, arXiv 2010.05646, section 2.3) and their losses.

Shapes: B batch, S samples, T steps, C channels. Weights are plain, without weight norm.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the multi-period and the multi-scale discriminators; the defaults are the paper's.

    Attributes:
      periods: one sub-discriminator for each looks at every p-th sample.
      period_channels: of its convolutions (kernel 5, stride 3, the last one's stride 1).
      scales: how many sub-discriminators look at sound halved 0, 1, 2, ... times.
      scale_channels, scale_strides, scale_groups: of their convolutions, kernel 41 (the first 15).
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    scales: int = 3
    scale_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_strides: tuple[int, ...] = (1, 2, 2, 4, 4, 1, 1)
    scale_groups: tuple[int, ...] = (1, 4, 16, 16, 16, 16, 1)

    @classmethod
    def small(cls) -> "DiscriminatorConfig":
        """What two CPU cores can afford: thin convolutions, a fiftieth of the paper's cost."""
        return cls(
            periods=(2, 3, 5, 7, 11),
            period_channels=(16, 32, 64, 64),
            scales=1,
            scale_channels=(16, 32, 64, 64),
            scale_strides=(2, 4, 4, 1),
            scale_groups=(1, 1, 1, 1),
        )


class StridedConv(nnx.Module):
    """A padded 1-D convolution [B, T, in] -> [B, ceil(T / stride), out], optionally in groups."""

    def __init__(self, in_channels, out_channels, kernel_size, stride, groups, *, rngs):
        shape = (kernel_size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.stride, self.groups = stride, groups

    def __call__(self, x):
        pad = (self.kernel.shape[0] - 1) // 2
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(self.stride,),
            padding=[(pad, pad)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return y + self.bias[...]


class ConvStack(nnx.Module):
    """Convolutions with LeakyReLU 0.1, the last one to a single channel: [B, T, 1] -> features."""

    def __init__(self, channels, kernel_sizes, strides, groups, *, rngs):
        inputs = (1, *channels[:-1])
        rows = zip(inputs, channels, kernel_sizes, strides, groups)
        self.convs = nnx.List([StridedConv(*row, rngs=rngs) for row in rows])
        self.conv_post = StridedConv(channels[-1], 1, 3, 1, 1, rngs=rngs)

    def __call__(self, x) -> list[jax.Array]:
        """Every layer's output; the last one is the judgement: 1 real, 0 made."""
        features = []
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), 0.1)
            features.append(x)
        return [*features, self.conv_post(x)]


class Discriminators(nnx.Module):
    """All of a config's sub-discriminators: wav [B, S] -> a list of features for each."""

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
        by_period = [
            stack(columns(wav, period)) for period, stack in zip(self.periods, self.of_periods)
        ]
        by_scale, x = [], wav[..., None]
        for stack in self.of_scales:
            by_scale.append(stack(x))
            x = nnx.avg_pool(x, (4,), (2,), [(2, 2)])
        return by_period + by_scale


def columns(wav: jax.Array, period: int) -> jax.Array:
    """[B, S] -> [B * period, ceil(S / period), 1]: each row holds every `period`-th sample."""
    wav = jnp.pad(wav, ((0, 0), (0, -wav.shape[1] % period)), mode="reflect")
    return wav.reshape(len(wav), -1, period).swapaxes(1, 2).reshape(len(wav) * period, -1, 1)


def discriminator_loss(real: Sequence, made: Sequence) -> jax.Array:
    """Least squares (Mao et al. 2017): recordings to 1, what the vocoder made to 0."""
    pairs = zip(real, made)
    return sum(((1 - r[-1]) ** 2).mean() + (m[-1] ** 2).mean() for r, m in pairs)


def adversarial_loss(made: Sequence) -> jax.Array:
    """What the generator lowers: the distance of its judgements from 1."""
    return sum(((1 - m[-1]) ** 2).mean() for m in made)


def feature_loss(real: Sequence, made: Sequence) -> jax.Array:
    """Feature matching (Larsen et al. 2016): L1 between the layers' outputs."""
    return sum(jnp.abs(a - b).mean() for r, m in zip(real, made) for a, b in zip(r[:-1], m[:-1]))
