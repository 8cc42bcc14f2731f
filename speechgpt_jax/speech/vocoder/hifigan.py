"""Parts of a unit vocoder: HiFi-GAN's generator and the predictors of duration and pitch.

Kong et al. 2020 (HiFi-GAN, arXiv 2010.05646), Kaneko et al. 2022 (iSTFTNet, arXiv 2203.02395), Liu
et al. 2020 (Neural Homomorphic Vocoder, Interspeech), Polyak et al. 2021 (arXiv 2104.00355).

Shapes: B batch, T codes or steps, C channels, F frames of the STFT, S = T * code_hop_size samples.
`mask` [B, T] is 1.0 on codes and 0.0 on padding; None if there is no padding.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import mel
from speechgpt_jax.speech.vocoder.config import VocoderConfig

# Natural logarithm of the filters' initial gain: speech is some 25 dB below pulses and noise, which
# have unit power.
LOG_LEVEL = -3.0
# exp() of an untrained or diverged network's output must stay finite.
MAX_LOG_MAGNITUDE = 5.0
TYPICAL_HZ = 130.0

# First code, which may be traced, and number of codes, which decides shapes.
CodeRange = tuple[jax.Array | int, int]


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Zeroes x [B, T, C] in the padding: each item of a batch sees zeros beyond its end."""
    return x if mask is None else x * mask[..., None]


class Conv(nnx.Module):
    """A 1-D convolution [B, T, in] -> [B, T * rate, out]; rate > 1 is a transposed convolution.

    The transposed one is computed as a convolution of its input with rate - 1 zeros between the
    steps, which is fastest on a CPU; its kernel is PyTorch's, reversed in time.

    Raises:
      UserError: kernel size and rate are not both odd or both even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        rate: int = 1,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        if (kernel_size - rate) % 2:
            raise UserError(
                f"kernel size {kernel_size} and rate {rate} must be both odd or both even."
            )
        # Only every rate-th tap of a transposed convolution meets a step that is not zero.
        scale = math.sqrt(rate / (in_channels * kernel_size))
        shape = (kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.rate, self.dilation = rate, dilation
        reach = (kernel_size - 1) * dilation
        self.padding = reach // 2 if rate == 1 else reach - (kernel_size - rate) // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(1,),
            padding=[(self.padding, self.padding)],
            lhs_dilation=(self.rate,),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...]


class ResidualBlock(nnx.Module):
    """HiFi-GAN's residual block 1: x + plain(dilated(x)) for each dilation in turn."""

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], *, rngs: nnx.Rngs
    ):
        def conv(dilation):
            return Conv(channels, channels, kernel_size, dilation=dilation, rngs=rngs)

        self.convs1 = nnx.List([conv(dilation) for dilation in dilations])
        self.convs2 = nnx.List([conv(1) for _ in dilations])

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, C], mask [B, T] -> [B, T, C]."""
        for dilated, plain in zip(self.convs1, self.convs2):
            y = dilated(masked(jax.nn.leaky_relu(x, 0.1), mask))
            x = x + plain(masked(jax.nn.leaky_relu(y, 0.1), mask))
        return x


class DurationPredictor(nnx.Module):
    """Predictor of durations from embedded reduced codes; N codes."""

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        hidden, kernel_size = config.duration_hidden_dim, config.duration_kernel_size
        self.conv1 = Conv(config.duration_embed_dim, hidden, kernel_size, rngs=rngs)
        self.ln1 = nnx.LayerNorm(hidden, epsilon=1e-5, rngs=rngs)
        self.conv2 = Conv(hidden, hidden, kernel_size, rngs=rngs)
        self.ln2 = nnx.LayerNorm(hidden, epsilon=1e-5, rngs=rngs)
        self.proj = nnx.Linear(hidden, 1, rngs=rngs)
        self.dropout = nnx.Dropout(config.duration_dropout)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """x [B, N, C], mask [B, N] -> log(duration in codes + 1) [B, N]; dropout with `rngs`."""
        for conv, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = norm(jax.nn.relu(conv(masked(x, mask))))
            x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.proj(x)[..., 0]


class PitchPredictor(nnx.Module):
    """Predictor of pitch and voicing from embedded codes.

    A code's pitch depends on the BEFORE codes (1.3 s) before it, enough for the intonation of a
    sentence, and on the AFTER codes after it, for which a stream of units has to wait.
    """

    DILATIONS = (1, 3, 9)
    REACH = 3 + sum(2 * (dilation + 1) for dilation in DILATIONS)
    AFTER = 4
    BEFORE = 2 * REACH - AFTER

    def __init__(self, in_channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.conv_pre = Conv(in_channels, hidden, 7, rngs=rngs)
        self.block = ResidualBlock(hidden, 5, self.DILATIONS, rngs=rngs)
        self.near = Conv(in_channels, hidden, 2 * self.AFTER + 1, rngs=rngs)
        self.joined = Conv(hidden, hidden, 1, rngs=rngs)
        self.proj = Conv(hidden, 2, 1, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x [B, T, C], mask [B, T] -> log of the pitch in Hz [B, T], logit of voicing [B, T]."""
        mask = jnp.ones(x.shape[:2]) if mask is None else mask
        # Convolutions are centred; the delay moves most of the wide ones' input before their code.
        past, past_mask = (_delayed(y, self.REACH - self.AFTER) for y in (x, mask))
        past = self.block(self.conv_pre(masked(past, past_mask)), past_mask)[:, : x.shape[1]]
        y = self.joined(jax.nn.leaky_relu(past + self.near(masked(x, mask)), 0.1))
        y = self.proj(jax.nn.leaky_relu(y, 0.1))
        return y[..., 0] + math.log(TYPICAL_HZ), y[..., 1]


def _delayed(x: jax.Array, steps: int) -> jax.Array:  # BT... -> B(steps + T)...
    return jnp.pad(x, [(0, 0), (steps, 0), *[(0, 0)] * (x.ndim - 2)])


class Generator(nnx.Module):
    """Upsampling convolutions, each followed by the mean of residual blocks.

    The output of the last convolution is one of:

    - the samples (HiFi-GAN);
    - magnitude and phase of a spectrum, for the inverse STFT (iSTFTNet);
    - two filters, one for pulses at the given pitch and one for noise; the sum of both, filtered,
      goes through the inverse STFT (Neural Homomorphic Vocoder). Periodicity is then given instead
      of learned, which takes far less training.
    """

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        channels = config.upsample_initial_channel
        self.conv_pre = Conv(config.model_in_dim, channels, 7, rngs=rngs)
        ups, resblocks = [], []
        for rate, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes):
            ups.append(Conv(channels, channels // 2, kernel_size, rate=rate, rngs=rngs))
            channels //= 2
            for block in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
                resblocks.append(ResidualBlock(channels, *block, rngs=rngs))
        self.ups, self.resblocks = nnx.List(ups), nnx.List(resblocks)
        self.n_fft, self.hop = config.istft_n_fft, config.istft_hop_size
        self.code_hop_size, self.contexts = config.code_hop_size, config.contexts
        parts = 3 if config.pitch_hidden_dim else 2
        out_channels = parts * (self.n_fft // 2 + 1) if self.n_fft else 1
        self.conv_post = Conv(channels, out_channels, 7, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,  # [B, T, C]
        mask: jax.Array | None = None,  # [B, T]
        pulses: jax.Array | None = None,  # [B, S]
        first_code: jax.Array | int = 0,
        only: CodeRange | None = None,
    ) -> jax.Array:
        """Wav [B, S] of embedded codes.

        Args:
          x: embedded codes.
          mask: 0.0 on padding.
          pulses: pulse train, if the config has a pitch predictor.
          first_code: position of x in the whole utterance; it decides which noise a code gets.
          only: first code and number of codes whose samples are returned. The others are context,
            dropped before the layers that no longer need it.
        """
        kept = 0, x.shape[1]
        only = only or kept
        x = self.conv_pre(masked(x, mask))
        for up, blocks, context in zip(self.ups, self._blocks_by_stage(), self.contexts[1:]):
            kept, (x, mask, pulses) = narrowed(kept, only, context, (x, mask, pulses))
            x = up(masked(jax.nn.leaky_relu(x, 0.1), mask))
            mask = None if mask is None else jnp.repeat(mask, up.rate, axis=1)
            x = sum(block(x, mask) for block in blocks) / len(blocks)
        kept, (x, mask, pulses) = narrowed(kept, only, self.contexts[-1], (x, mask, pulses))
        x = masked(jax.nn.leaky_relu(x, 0.01), mask)
        wav = self._samples(x, mask, pulses, first_code + kept[0])
        return narrowed(kept, only, 0, wav)[1]

    def _blocks_by_stage(self) -> list[Sequence["ResidualBlock"]]:
        """The residual blocks that follow each transposed convolution."""
        size = len(self.resblocks) // len(self.ups)
        return [self.resblocks[i * size : (i + 1) * size] for i in range(len(self.ups))]

    def _samples(
        self,
        x: jax.Array,
        mask: jax.Array | None,  # BT
        pulses: jax.Array | None,  # BS
        first_code: jax.Array | int,
    ) -> jax.Array:
        """Activations of the last stage [B, T, C] -> wav [B, S]."""
        if not self.n_fft:
            return jnp.tanh(self.conv_post(x))[..., 0]
        # Reflection adds one step in front: T + 1 frames make T * hop samples.
        x = self.conv_post(jnp.concatenate([x[:, 1:2], x], axis=1))
        real, imaginary = self._spectrum(x, mask, pulses, first_code)
        frames = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
        return mel.istft(real, imaginary, self.n_fft, self.hop, frames)

    def _spectrum(
        self,
        x: jax.Array,
        mask: jax.Array | None,  # BT
        pulses: jax.Array | None,  # BS
        first_code: jax.Array | int,
    ) -> tuple[jax.Array, jax.Array]:
        """Output of conv_post [B, F, parts * bins] -> real and imaginary parts [B, F, bins]."""
        if pulses is None:
            return spectrum_of(x)
        noise = code_noise(first_code, pulses.shape[1] // self.code_hop_size, self.code_hop_size)
        if mask is not None:
            noise = noise * jnp.repeat(mask, self.hop, axis=1)
        pulse_real, pulse_imag = mel.stft(pulses, self.n_fft, self.hop, "constant")
        noise_real, noise_imag = mel.stft(noise, self.n_fft, self.hop, "constant")
        bins = self.n_fft // 2 + 1
        filter_real, filter_imag = spectrum_of(x[..., : 2 * bins], LOG_LEVEL)
        noise_gain = jnp.exp(jnp.minimum(x[..., 2 * bins :], MAX_LOG_MAGNITUDE) + LOG_LEVEL)
        real = filter_real * pulse_real - filter_imag * pulse_imag + noise_gain * noise_real
        imag = filter_real * pulse_imag + filter_imag * pulse_real + noise_gain * noise_imag
        return real, imag


def narrowed(kept: CodeRange, only: CodeRange, context: int, arrays: Any) -> tuple[CodeRange, Any]:
    """Cuts arrays over the codes `kept` down to the codes `only` and `context` codes around them.

    Args:
      kept: codes that the arrays cover.
      only: codes whose samples are wanted, within `kept`.
      context: number of codes to keep on either side of `only`.
      arrays: pytree of [B, count * n, ...], n steps per code.

    Returns:
      The codes that are kept now, and the arrays over them.
    """
    (begin, count), (first, number) = kept, only
    size = min(number + 2 * context, count)
    if size == count:
        return kept, arrays
    start = jnp.clip(first - context, begin, begin + count - size)

    def cut(x):
        steps = x.shape[1] // count
        return jax.lax.dynamic_slice_in_dim(x, (start - begin) * steps, size * steps, axis=1)

    return (start, size), jax.tree.map(cut, arrays)


def code_noise(first_code: jax.Array | int, num_codes: int, hop: int) -> jax.Array:
    """White noise [1, num_codes * hop] that depends only on the position of each code.

    An utterance then has the same samples in every batch, and whether streamed or not.
    """

    def noise(position):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), position), (hop,))

    return jax.vmap(noise)(first_code + jnp.arange(num_codes)).reshape(1, -1)


def spectrum_of(x: jax.Array, log_level: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Log magnitude and phase, concatenated [B, F, 2 bins] -> real and imaginary part [B, F, bins].

    The phase is an angle as in Vocos (Siuzdak 2023, arXiv 2306.00814); iSTFTNet takes its sine.
    """
    log_magnitude, phase = jnp.split(x, 2, axis=-1)
    magnitude = jnp.exp(jnp.minimum(log_magnitude, MAX_LOG_MAGNITUDE) + log_level)
    return magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)
