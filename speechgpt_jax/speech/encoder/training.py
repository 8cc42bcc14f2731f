"""Training of a HuBERT on another model's features: batches and two objectives.

`MaskedPrediction` is HuBERT's own objective (Hsu et al. 2021, arXiv 2106.07447): spans of frames
are masked, and the clusters of these frames are predicted from the frames around them.
`Distillation` is the regression of DistilHuBERT (Chang et al. 2022, arXiv 2110.01900): nothing is
masked, and the features are regressed on the teacher's.

An objective builds a learner: a module that holds the HuBERT and its heads, with
`learner.loss(batch, key) -> (loss, metrics)`.

Shapes: B batch, S samples, T frames, K clusters, D feature size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soxr
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.batches import NumberedBatches
from speechgpt_jax.speech.distortion import distort
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.targets import retimed


@dataclasses.dataclass(frozen=True)
class MaskedPrediction:
    """HuBERT's objective; the defaults are the paper's.

    Attributes:
      mask_start: probability that a masked span starts at a frame; spans may overlap.
      mask_frames: length of a span in frames.
      unmasked_weight: weight of the loss at unmasked frames; that at masked frames weighs
        1 - `unmasked_weight`.
      temperature: divides the cosine similarity of a frame's vector and a cluster's vector.
      vector_size: size of these vectors.
    """

    mask_start: float = 0.08
    mask_frames: int = 10
    unmasked_weight: float = 0.0
    temperature: float = 0.1
    vector_size: int = 256

    def __post_init__(self):
        check_number("mask_start", self.mask_start, above=0, at_most=1)
        check_number("mask_frames", self.mask_frames, at_least=1)
        check_number("unmasked_weight", self.unmasked_weight, at_least=0, at_most=1)
        check_number("temperature", self.temperature, above=0)
        check_number("vector_size", self.vector_size, at_least=1)

    def learner(
        self, config: HubertConfig, targets: list[np.ndarray], rngs: nnx.Rngs
    ) -> "MaskedHubert":
        """The module to train; `targets` are the cluster ids [T] of every clip.

        Raises:
          UserError: the targets are features.
        """
        if targets[0].ndim != 1:
            raise UserError(
                f"the targets [frames, {targets[0].shape[-1]}] are features; MaskedPrediction needs"
                " cluster ids: call tools.hubert_targets with --num_clusters."
            )
        num_clusters = 1 + max(int(ids.max(initial=0)) for ids in targets)
        return MaskedHubert(config, num_clusters, self, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Mean squared error of the features."""

    def learner(
        self, config: HubertConfig, targets: list[np.ndarray], rngs: nnx.Rngs
    ) -> "HubertStudent":
        """The module to train; `targets` are the teacher's features [T, D] of every clip.

        Raises:
          UserError: the targets are cluster ids, or their size is not that of the HuBERT.
        """
        if targets[0].ndim != 2:
            raise UserError(
                "the targets [frames] are cluster ids; Distillation needs features: call"
                " tools.hubert_targets without --num_clusters."
            )
        if targets[0].shape[1] != config.feature_size:
            raise UserError(
                f"the targets are [frames, {targets[0].shape[1]}]; this HuBERT's features are"
                f" [frames, {config.feature_size}]. Set its projection_size to the targets' size,"
                f" or make targets with --directions={config.feature_size}."
            )
        return HubertStudent(config, rngs=rngs)


class MaskedHubert(nnx.Module):
    """A HuBERT with a mask embedding and one vector per cluster."""

    def __init__(
        self,
        config: HubertConfig,
        num_clusters: int,
        objective: MaskedPrediction,
        *,
        rngs: nnx.Rngs,
    ):
        self.objective = objective
        self.hubert = Hubert(config, rngs=rngs)
        self.mask_embedding = nnx.Param(jax.random.uniform(rngs.params(), (config.hidden_size,)))
        self.vector_head = nnx.Linear(config.feature_size, objective.vector_size, rngs=rngs)
        vectors = jax.random.normal(rngs.params(), (num_clusters, objective.vector_size))
        self.cluster_vectors = nnx.Param(vectors)

    def __call__(
        self,
        wav: jax.Array,  # [B, S]
        lengths: jax.Array,  # [B] in samples
        masked: jax.Array,  # bool [B, T]
        first: jax.Array | int = 0,
    ) -> jax.Array:
        """Logits [B, T, K] of the clusters; `first`: position of the first frame."""
        config = self.hubert.config
        x = self.hubert.project(wav, lengths)
        x = jnp.where(masked[..., None], self.mask_embedding[...], x)
        features = self.hubert.encode(x, config.num_frames(lengths), config.num_layers, first)
        predicted, clusters = self.vector_head(features), self.cluster_vectors[...]
        return _unit_length(predicted) @ _unit_length(clusters).T / self.objective.temperature

    def loss(
        self, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy of the clusters, of masked and, by `unmasked_weight`, of unmasked frames.

        `batch` is one of `HubertBatches`: wav float32 [B, S], lengths int32 [B] in samples, and
        targets, cluster ids int32 [B, T].
        """
        targets, weight = batch["targets"], self.objective.unmasked_weight
        mask_key, position_key = jax.random.split(key)
        masked = sample_spans(
            mask_key, targets.shape, self.objective.mask_start, self.objective.mask_frames
        )
        first = _random_position(position_key, self.hubert.config)
        logits = self(batch["wav"], batch["lengths"], masked, first)
        masked_loss, masked_accuracy = _cluster_loss(logits, targets, masked)
        unmasked_loss, unmasked_accuracy = _cluster_loss(logits, targets, ~masked)
        return (1 - weight) * masked_loss + weight * unmasked_loss, {
            "masked_loss": masked_loss,
            "unmasked_loss": unmasked_loss,
            "accuracy": masked_accuracy,
            "unmasked_accuracy": unmasked_accuracy,
        }


class HubertStudent(nnx.Module):
    """A HuBERT that learns the features of a teacher."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.hubert = Hubert(config, rngs=rngs)

    def loss(
        self, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean squared error over the frames.

        `batch` is one of `HubertBatches`: wav float32 [B, S], lengths int32 [B] in samples, and
        targets, features float32 [B, T, D].
        """
        config, frames = self.hubert.config, self.hubert.config.num_frames(batch["lengths"])
        first = _random_position(key, config)
        x = self.hubert.project(batch["wav"], batch["lengths"])
        features = self.hubert.encode(x, frames, config.feature_layer, first)
        is_real = jnp.arange(features.shape[1]) < frames[:, None]
        return _masked_mean(jnp.square(features - batch["targets"]).mean(-1), is_real), {}


def _random_position(key: jax.Array, config: HubertConfig) -> jax.Array:
    """Position of a crop's first frame, so that all positions are trained.

    A recording is encoded with the positions of its frames; without the draw those beyond a crop's
    length would never have been seen.
    """
    return jax.random.randint(key, (), 0, max(1, config.position_period))


def sample_spans(
    key: jax.Array, shape: tuple[int, int], start_probability: float, length: int
) -> jax.Array:
    """Random mask, bool [B, T]: a span of `length` frames starts at each frame with a probability.

    Spans may overlap, and end with the row.
    """
    starts = jax.random.bernoulli(key, start_probability, shape)
    padded = jnp.pad(starts, ((0, 0), (length - 1, 0)))
    return sum(padded[:, i : i + shape[1]] for i in range(length)) > 0


def _cluster_loss(
    logits: jax.Array,  # [B, T, K]
    targets: jax.Array,  # [B, T], -1 where there is none
    chosen: jax.Array,  # bool [B, T]
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy and accuracy over the chosen frames that have a target."""
    ids = jnp.maximum(targets, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    chosen = chosen & (targets >= 0)
    return _masked_mean(losses, chosen), _masked_mean(logits.argmax(-1) == ids, chosen)


def _masked_mean(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Mean of the chosen values; 0 if none is chosen."""
    return (values * chosen).sum() / jnp.maximum(chosen.sum(), 1)


def _unit_length(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


class HubertBatches(NumberedBatches):
    """Endless batches of random crops of `crop_seconds`; shorter clips are padded with zeros.

    Each crop is played at a random speed of up to `max_speed`, or slowed down by as much: pitch and
    formants change with it, so that it is trained on more voices than were recorded.

    {
        "wav": float32 [B, S],
        "lengths": int32 [B], in samples,
        "targets": cluster ids int32 [B, T], -1 past a clip's end,
            or features float32 [B, T, D], 0 past a clip's end,
    }
    """

    def __init__(
        self,
        clips: list[np.ndarray],  # int16 [S] each
        targets: list[np.ndarray],  # [T] or [T, D] each, 50 frames per second
        config: HubertConfig,
        *,
        rows: int,
        crop_seconds: float,
        distorted: bool,
        max_speed: float,
        seed: int,
    ):
        super().__init__(seed)
        self._clips, self._targets, self._config = clips, targets, config
        self._rows, self._distorted, self._max_log_speed = rows, distorted, np.log(max_speed)
        self._samples = round(crop_seconds * SAMPLE_RATE)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        wav = np.zeros((self._rows, self._samples), np.float32)
        size = self._targets[0].shape[1:]
        shape = (self._rows, self._config.num_frames(self._samples), *size)
        targets = np.zeros(shape, np.float32) if size else np.full(shape, -1, np.int32)
        lengths = np.zeros(self._rows, np.int32)
        for row, i in enumerate(rng.choice(len(self._clips), self._rows)):
            crop, crop_targets = self._crop(rng, self._clips[i], self._targets[i])
            wav[row, : len(crop)] = distort(rng, crop) if self._distorted else crop
            targets[row, : len(crop_targets)] = crop_targets
            lengths[row] = len(crop)
        return {"wav": wav, "lengths": lengths, "targets": targets}

    def _crop(
        self, rng: np.random.Generator, clip: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A part of the clip, float32 of at most `self._samples`, and its targets."""
        speed = np.exp(rng.uniform(-1, 1) * self._max_log_speed)
        hop, size = self._config.hop, int(self._samples * speed)
        first = rng.integers(max(0, len(clip) - size) // hop + 1)
        crop = clip[first * hop :][:size] / np.float32(32768)
        targets = targets[first:][: self._config.num_frames(len(crop))]
        if self._max_log_speed:
            crop = soxr.resample(crop, SAMPLE_RATE * speed, SAMPLE_RATE)[: self._samples]
            targets = retimed(targets, self._config.num_frames(len(crop)))
        return crop, targets
