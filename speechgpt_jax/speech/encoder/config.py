"""Sizes of a HuBERT and how many frames they make of how many samples."""

import dataclasses
import math

from speechgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Sizes of a HuBERT; the defaults are the base model (95 M parameters).

    Attributes:
      front_end: "wave", or "mel": its first layer is then no convolution but a log-mel spectrogram
        of `conv_dim[0]` bands, windows of `conv_kernel[0]` samples and hops of `conv_stride[0]`.
      norm_first: LayerNorm stands before attention and MLP, as in the large HuBERT, and once at the
        end, instead of after each.
      position_kernel, position_groups: of the convolution that tells positions.
      position_period: if not 0, sinusoids do instead, Whisper's, each of a frequency such that all
        repeat after so many frames: a recording has no longest length.
      attention_frames: how far a frame attends to either side; None is all of the sound.
      feature_layer: 1-based layer whose output is the features.
      projection_size: if given, the features are a linear projection of that output to so many.
      projection_reach: if not 0, it is of three frames: that so many before, itself, that after.
    """

    front_end: str = "wave"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    layer_norm_eps: float = 1e-5
    norm_first: bool = False
    position_period: int = 0
    attention_frames: int | None = None
    feature_layer: int = 11
    projection_size: int | None = None
    projection_reach: int = 0

    def __post_init__(self):
        if self.front_end not in ("wave", "mel"):
            raise UserError(f'front_end {self.front_end!r} must be "wave" or "mel".')

    @classmethod
    def base(cls) -> "HubertConfig":
        """The shape of mHuBERT: units come from layer 11 of 12."""
        return cls()

    @classmethod
    def tiny(cls) -> "HubertConfig":
        """4.7 M parameters, over a mel spectrogram: what a laptop teaches from nothing."""
        return cls(
            front_end="mel",
            conv_dim=(80, 384, 384),
            conv_kernel=(400, 3, 3),
            conv_stride=(160, 1, 2),
            hidden_size=384,
            num_layers=3,
            num_heads=6,
            intermediate_size=1024,
            norm_first=True,
            position_period=1500,
            attention_frames=32,
            feature_layer=3,
        )

    @classmethod
    def whisper_tiny(cls) -> "HubertConfig":
        """7.6 M parameters, Whisper tiny's encoder: the shipped ears of the demo world.

        It attends to 1.92 s on either side, and tells 37 directions of 38 phones.
        """
        return dataclasses.replace(
            cls.tiny(),
            num_layers=4,
            intermediate_size=1536,
            attention_frames=96,
            feature_layer=4,
            projection_size=37,
            projection_reach=2,
        )

    @property
    def feature_size(self) -> int:
        return self.projection_size or self.projected_size

    @property
    def projected_size(self) -> int:
        """What a projection is given; without one, these are the features."""
        return self.hidden_size * (3 if self.projection_reach else 1)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: 320, which is 20 ms at 16 kHz."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples one frame sees before the Transformer: 400 of the base model."""
        field, step = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    @property
    def padding(self) -> int:
        """Samples of silence before and after the sound.

        Frames of either front end so are as many, and their centres (320 t + 200) where they were.
        """
        return (self.receptive_field - self.conv_kernel[0]) // 2 * (self.front_end == "mel")

    @property
    def reach(self) -> float:
        """How many frames to either side a feature depends on, by attention and projection."""
        near = math.inf if self.attention_frames is None else self.attention_frames
        return self.feature_layer * near + self.projection_reach

    def num_frames(self, samples):
        """16000 samples -> 49 frames; fewer than 400 samples -> 0. Works on ints and arrays."""
        samples = samples + 2 * self.padding
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)

    def first_frames(self, samples):
        """Frames of the front end's first layer: samples in, as many as there are, unpadded."""
        frames = (samples - self.conv_kernel[0]) // self.conv_stride[0] + 1
        return frames * (frames > 0)
