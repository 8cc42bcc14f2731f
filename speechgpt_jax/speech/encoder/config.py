"""Sizes of a HuBERT, and the number of its frames for a number of samples."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from speechgpt_jax.annotations import annotations
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields, as_tuples
from speechgpt_jax.limits import LARGEST_INT, check_number, check_sizes
from speechgpt_jax.speech.recordings import HOP

Samples = TypeVar("Samples", int, np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Sizes of a HuBERT; the defaults are the base model (95 M parameters).

    Attributes:
      normalize: recordings are scaled to mean 0 and variance 1 first (`do_normalize` of Hugging
        Face, `task.normalize` of fairseq).
      front_end: "wave", or "mel": its first layer is then no convolution but a log-mel spectrogram
        of `conv_dim[0]` bands, windows of `conv_kernel[0]` samples and hops of `conv_stride[0]`.
      conv_dim, conv_kernel, conv_stride: channels, taps and stride of each front-end layer.
      hidden_size, num_layers, num_heads, intermediate_size: sizes of the Transformer.
      layer_norm_eps: added to the variance in every normalisation layer.
      position_kernel, position_groups: taps and groups of the convolution that adds positions.
      position_period: if not 0, sinusoids that repeat after this many frames replace that
        convolution, so a recording may have any length.
      norm_first: LayerNorm stands before attention and MLP, as in the large HuBERT, and once at the
        end, instead of after each.
      attention_frames: number of frames to either side that a frame attends to; None: all.
      feature_layer: number of the layer, from 1, whose output is the features.
      projection_size: if given, the features are a linear projection of that output to this size.
      projection_reach: if not 0, the projection reads three frames: the one this many frames
        before, the frame itself and the one this many after.
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
    normalize: bool = False

    def __post_init__(self):
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "position_kernel",
            "position_groups",
        ):
            check_number(name, getattr(self, name), at_least=1)
        for name in ("position_period", "projection_reach"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("attention_frames", "projection_size"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=1)
        check_number("layer_norm_eps", self.layer_norm_eps, above=0)
        check_sizes(
            conv_dim=self.conv_dim, conv_kernel=self.conv_kernel, conv_stride=self.conv_stride
        )
        if self.front_end not in ("wave", "mel"):
            raise UserError(f'front_end {self.front_end!r} must be "wave" or "mel".')
        if self.hop != HOP:
            raise UserError(
                f"conv_stride {self.conv_stride} makes a frame of every {self.hop} samples; units,"
                f" targets and the vocoder need one of every {HOP} (20 ms)."
            )
        if self.front_end == "mel" and self.conv_dim[-1] != self.hidden_size:
            raise UserError(
                f"conv_dim {self.conv_dim} must end in hidden_size {self.hidden_size}: the mel "
                "front end has no projection."
            )
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}."
            )
        if not 1 <= self.feature_layer <= self.num_layers:
            raise UserError(
                f"feature_layer {self.feature_layer} must be one of the num_layers "
                f"{self.num_layers} layers, counted from 1."
            )
        if self.position_period and self.hidden_size % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} must be even: half of it are sines, half cosines."
            )
        if not self.position_period and self.hidden_size % self.position_groups:
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of position_groups "
                f"{self.position_groups}."
            )

    @classmethod
    def base(cls) -> "HubertConfig":
        """Sizes of mHuBERT, whose units come from layer 11 of 12."""
        return cls()

    @classmethod
    def tiny(cls) -> "HubertConfig":
        """4.7 M parameters over a mel spectrogram; a laptop can train it from scratch."""
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
        """7.6 M parameters, Whisper tiny's encoder: the shipped speech encoder of the demo.

        A layer attends to 1.92 s on either side. The features are 37 discriminant directions of 38
        phones.
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

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str) -> "HubertConfig":
        """Config from the fields of a config.json that `speech2unit.save_hubert` wrote.

        Args:
          fields: fields of the file; those that are missing have their defaults.
          source: its path, for messages.

        Raises:
          UserError: a field is unknown or has a wrong type, or the sizes don't fit each other.
        """
        kinds, read = annotations(cls), Fields(fields, source)
        if unknown := fields.keys() - kinds.keys():
            raise UserError(
                f"{source} has {', '.join(sorted(unknown))}: it is not that of a HuBERT of this"
                " project; convert other HuBERTs with tools.convert_hubert."
            )
        values = {}
        for name in fields:
            limits = {} if kinds[name] is str else {"at_most": LARGEST_INT}
            values[name] = as_tuples(read.require(name, kinds[name], **limits))
        with naming(source):
            return cls(**values)

    @property
    def feature_size(self) -> int:
        """Size D of a feature vector."""
        return self.projection_size or self.projected_size

    @property
    def projected_size(self) -> int:
        """Size of the vectors that are projected, or are the features if nothing is projected."""
        return self.hidden_size * (3 if self.projection_reach else 1)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame of the front end depends on: 400 (25 ms) in the base model."""
        field, step = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    @property
    def padding(self) -> int:
        """Samples of silence added before and after a recording.

        With it both front ends make the same number of frames, centred at samples 320 t + 200.
        """
        return (self.receptive_field - self.conv_kernel[0]) // 2 * (self.front_end == "mel")

    @property
    def reach(self) -> float:
        """Frames to either side that a feature depends on by attention and projection; or inf."""
        near = math.inf if self.attention_frames is None else self.attention_frames
        return self.feature_layer * near + self.projection_reach

    def num_frames(self, samples: Samples) -> Samples:
        """16000 samples -> 49 frames; fewer than 400 samples -> 0."""
        samples = samples + 2 * self.padding
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)

    def first_frames(self, samples: Samples) -> Samples:
        """Number of frames of the front end's first layer, for samples including `padding`."""
        frames = (samples - self.conv_kernel[0]) // self.conv_stride[0] + 1
        return frames * (frames > 0)
