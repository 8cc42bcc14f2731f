"""How a HuBERT learns from another model's features: batches and two objectives.

`MaskedPrediction` is HuBERT's own (Hsu et al. 2021, arXiv 2106.07447): spans of frames are hidden,
and their clusters are told from what is around them. `Distillation`, as of DistilHuBERT (Chang et
al. 2022, arXiv 2110.01900), hides nothing: the features themselves are to become the teacher's.

An objective makes a `learner`: a module that holds the HuBERT and its heads, with
`learner.loss(batch, key) -> (loss, metrics)`.

Shapes: B batch, S samples, T frames, K clusters, D size of features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.signal
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.batches import NumberedBatches
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert


@dataclasses.dataclass(frozen=True)
class MaskedPrediction:
    """HuBERT's objective; the defaults are the paper's.

    Attributes:
      mask_start: share of the frames at which a hidden span begins; spans may overlap.
      mask_frames: length of a span.
      unmasked_weight: of the frames that are not hidden; those that are weigh 1 less it.
      temperature: divides the cosine of a frame's and a cluster's vectors.
      vector_size: of both vectors.
    """

    mask_start: float = 0.08
    mask_frames: int = 10
    unmasked_weight: float = 0.0
    temperature: float = 0.1
    vector_size: int = 256

    def learner(self, config: HubertConfig, targets: np.ndarray, rngs: nnx.Rngs):
        """Targets are cluster ids [frames], all that there are; UserError if they are features."""
        if targets.ndim != 1:
            raise UserError(f"targets {list(targets.shape)} are features; expected cluster ids.")
        return MaskedHubert(config, 1 + int(targets.max()), self, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The squared error of the features."""

    def learner(self, config: HubertConfig, targets: np.ndarray, rngs: nnx.Rngs):
        """Targets are features [frames, D]; UserError if they are not of the student's size."""
        if targets.shape[1:] != (config.feature_size,):
            raise UserError(
                f"targets are {list(targets.shape)}; expected features"
                f" [frames, {config.feature_size}] for a student of this feature_size."
            )
        return HubertStudent(config, rngs=rngs)


class MaskedHubert(nnx.Module):
    """A HuBERT whose input has gaps, and vectors of the clusters that belong there."""

    def __init__(self, config: HubertConfig, num_clusters: int, objective, *, rngs: nnx.Rngs):
        self.objective = objective
        self.hubert = Hubert(config, rngs=rngs)
        self.gap = nnx.Param(jax.random.uniform(rngs.params(), (config.hidden_size,)))
        self.vector_head = nnx.Linear(config.feature_size, objective.vector_size, rngs=rngs)
        vectors = jax.random.normal(rngs.params(), (num_clusters, objective.vector_size))
        self.cluster_vectors = nnx.Param(vectors)

    def __call__(self, wav: jax.Array, lengths: jax.Array, hidden: jax.Array) -> jax.Array:
        """wav [B, S], lengths [B] in samples, hidden [B, T] (bool) -> logits [B, T, K]."""
        config = self.hubert.config
        x = jnp.where(hidden[..., None], self.gap[...], self.hubert.project(wav, lengths))
        features = self.hubert.encode(x, config.num_frames(lengths), config.num_layers)
        told, clusters = self.vector_head(features), self.cluster_vectors[...]
        return _unit_length(told) @ _unit_length(clusters).T / self.objective.temperature

    def loss(self, batch: dict[str, jax.Array], key: jax.Array):
        """Cross-entropy of the hidden clusters; batch as `HubertBatches` gives it."""
        targets, weight = batch["targets"], self.objective.unmasked_weight
        hidden = spans(key, targets.shape, self.objective.mask_start, self.objective.mask_frames)
        logits = self(batch["wav"], batch["lengths"], hidden)
        masked_loss, masked_accuracy = _of_clusters(logits, targets, hidden)
        unmasked_loss, unmasked_accuracy = _of_clusters(logits, targets, ~hidden)
        return (1 - weight) * masked_loss + weight * unmasked_loss, {
            "masked_loss": masked_loss,
            "unmasked_loss": unmasked_loss,
            "accuracy": masked_accuracy,
            "unmasked_accuracy": unmasked_accuracy,
        }


class HubertStudent(nnx.Module):
    """A HuBERT whose features are to be another model's."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.hubert = Hubert(config, rngs=rngs)

    def loss(self, batch: dict[str, jax.Array], key: jax.Array):
        """Mean squared error; batch as `HubertBatches` gives it."""
        config, frames = self.hubert.config, self.hubert.config.num_frames(batch["lengths"])
        # Sound is heard alike wherever in a recording it is.
        first = jax.random.randint(key, (), 0, max(1, config.position_period))
        x = self.hubert.project(batch["wav"], batch["lengths"])
        features = self.hubert.encode(x, frames, config.feature_layer, first)
        heard = jnp.arange(features.shape[1]) < frames[:, None]
        return _mean(jnp.square(features - batch["targets"]).mean(-1), heard), {}


def spans(key: jax.Array, shape: tuple[int, int], start: float, length: int) -> jax.Array:
    """Hidden frames, bool [B, T]: from each frame on, with probability `start`, `length` frames."""
    begins = jax.random.bernoulli(key, start, shape)
    padded = jnp.pad(begins, ((0, 0), (length - 1, 0)))
    return sum(padded[:, i : i + shape[1]] for i in range(length)) > 0


def _of_clusters(logits, targets, chosen) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and accuracy over the chosen frames that have a target (-1: none)."""
    known = jnp.maximum(targets, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, known)
    chosen = chosen & (targets >= 0)
    return _mean(losses, chosen), _mean(logits.argmax(-1) == known, chosen)


def _mean(values, chosen):
    """Of the chosen ones; 0 if there are none."""
    return (values * chosen).sum() / jnp.maximum(chosen.sum(), 1)


def _unit_length(x):
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def distort(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """Another room and microphone, the same words: random level, tilt, resonance and noise."""
    tilt, (radius, angle) = rng.uniform(-0.5, 0.5), rng.uniform((0.0, 0.1), (0.8, 3.0))
    resonance = [1.0, -2 * radius * np.cos(angle), radius**2]
    numerator, denominator = ([1.0, tilt], resonance)
    if rng.random() < 0.5:  # A notch instead of a peak.
        numerator, denominator = np.convolve(numerator, resonance), [1.0]
    out = scipy.signal.lfilter(numerator, denominator, wav)
    out *= rng.uniform(0.1, 0.3) / (np.abs(out).max() + 1e-6)
    level = np.sqrt(np.square(out).mean()) * 10 ** (-rng.uniform(10, 50) / 20)
    return (out + level * rng.standard_normal(len(out))).astype(np.float32)


class HubertBatches(NumberedBatches):
    """Endless batches of random crops of `crop_seconds`, `rows` at a time; short clips are padded.

    {"wav": float32 [B, S], "lengths": int32 [B] in samples, "targets": int32 [B, T] cluster ids, -1
    where a clip has ended, or float32 [B, T, D] features, 0 there}
    """

    def __init__(
        self,
        clips: list[np.ndarray],  # int16 [S] each
        targets: list[np.ndarray],  # [T] or [T, D] each, 50 a second
        config: HubertConfig,
        *,
        rows: int,
        crop_seconds: float,
        distorted: bool,
        seed: int,
    ):
        super().__init__(seed)
        self._clips, self._targets, self._config = clips, targets, config
        self._rows, self._distorted = rows, distorted
        self._samples = round(crop_seconds * SAMPLE_RATE)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        wav = np.zeros((self._rows, self._samples), np.float32)
        size = self._targets[0].shape[1:]
        shape = (self._rows, self._config.num_frames(self._samples), *size)
        targets = np.zeros(shape, np.float32) if size else np.full(shape, -1, np.int32)
        lengths = np.zeros(self._rows, np.int32)
        for row, i in enumerate(rng.choice(len(self._clips), self._rows)):
            hop = self._config.hop
            first = rng.integers(max(0, len(self._clips[i]) - self._samples) // hop + 1)
            clip = self._clips[i][first * hop :][: self._samples] / np.float32(32768)
            lengths[row] = len(clip)
            wav[row, : len(clip)] = distort(rng, clip) if self._distorted else clip
            told = self._targets[i][first:][: self._config.num_frames(len(clip))]
            targets[row, : len(told)] = told
        return {"wav": wav, "lengths": lengths, "targets": targets}
