"""HuBERT's masked prediction of cluster ids (Hsu et al. 2021, section II-B): batches and loss.

Shapes: B batch, S samples, T frames, K clusters.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from flax import nnx

from speechgpt_jax.speech.hubert import Hubert, HubertConfig


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Spans of `length` frames start at each frame with probability `start_probability`."""

    start_probability: float = 0.04
    length: int = 10
    # Weight of the loss on frames that were not masked (alpha = 1 / (1 + weight) in the paper).
    unmasked_weight: float = 1.0


class HubertPretraining(nnx.Module):
    """A HuBERT with a learned mask vector and a classifier over the target clusters."""

    def __init__(self, config: HubertConfig, num_clusters: int, *, rngs: nnx.Rngs):
        self.hubert = Hubert(config, rngs=rngs)
        self.mask_embedding = nnx.Param(jax.random.uniform(rngs.params(), (config.hidden_size,)))
        self.head = nnx.Linear(config.hidden_size, num_clusters, rngs=rngs)

    def __call__(self, wav: jax.Array, lengths: jax.Array, mask: jax.Array) -> jax.Array:
        """wav [B, S], lengths [B] in samples, mask [B, T] bool -> logits [B, T, K]."""
        x = self.hubert.project(wav, lengths)
        x = jnp.where(mask[..., None], self.mask_embedding[...], x)
        return self.head(self.hubert.encode(x, self.hubert.config.num_frames(lengths)))


def span_mask(rng: np.random.Generator, shape: tuple[int, int], masking: MaskingConfig):
    """bool [B, T]: True on every frame within `length` frames after a drawn start."""
    starts = rng.random(shape) < masking.start_probability
    mask = starts.copy()
    for shift in range(1, masking.length):
        mask[:, shift:] |= starts[:, :-shift]
    return mask


def masked_prediction_loss(
    model: HubertPretraining, batch: dict[str, jax.Array], unmasked_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy on masked frames, plus `unmasked_weight` times that on the others.

    Args:
      batch: `wav` [B, S], `lengths` [B] in samples, `mask` [B, T] bool, and `targets` [B, T],
        cluster ids with -1 where a clip has ended.

    Returns:
      the loss, and `masked_accuracy` and `unmasked_accuracy` of the prediction.
    """
    logits = model(batch["wav"], batch["lengths"], batch["mask"])
    targets = batch["targets"]
    losses = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    masked = batch["mask"] & (targets >= 0)
    unmasked = ~batch["mask"] & (targets >= 0)
    correct = logits.argmax(-1) == targets

    def mean(values, where):
        return (values * where).sum() / jnp.maximum(where.sum(), 1)

    loss = mean(losses, masked) + unmasked_weight * mean(losses, unmasked)
    return loss, {
        "loss": loss,
        "masked_accuracy": mean(correct, masked),
        "unmasked_accuracy": mean(correct, unmasked),
    }


def distort(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """Another room and microphone, the same words: random level, tilt, resonance and noise."""
    tilt, (radius, angle) = rng.uniform(-0.5, 0.5), rng.uniform((0.0, 0.1), (0.8, 3.0))
    resonance = [1.0, -2 * radius * np.cos(angle), radius**2]
    numerator, denominator = ([1.0, tilt], resonance)
    if rng.random() < 0.5:  # A notch instead of a peak.
        numerator, denominator = np.convolve(numerator, resonance), [1.0]
    out = scipy.signal.lfilter(numerator, denominator, wav)
    out *= rng.uniform(0.3, 1.0) * 0.3 / (np.abs(out).max() + 1e-6)
    level = np.sqrt(np.square(out).mean()) * 10 ** (-rng.uniform(10, 50) / 20)
    return (out + level * rng.standard_normal(len(out))).astype(np.float32)


class HubertBatches:
    """Endless batches of about `seconds` of sound, clips of like length together.

    Batch n is a function of (seed, n) alone, so the position is one number.
    """

    def __init__(
        self,
        clips: list[np.ndarray],  # [S] each, of any scale: it is drawn anew
        targets: list[np.ndarray],
        config: HubertConfig,
        masking: MaskingConfig,
        *,
        seconds: float,
        bucket_seconds: tuple[float, ...],
        seed: int,
    ):
        self._clips, self._targets, self._config = clips, targets, config
        self._masking, self._seed, self._position = masking, seed, 0
        edges = np.array([round(16_000 * edge) for edge in bucket_seconds])
        bucket = np.searchsorted(edges, [len(clip) for clip in clips])
        # Clips over the last edge are cut to it.
        bucket = np.minimum(bucket, len(edges) - 1)
        self._buckets = [np.flatnonzero(bucket == i) for i in range(len(edges))]
        self._lengths = edges
        self._rows = [max(1, round(seconds * 16_000 / edge)) for edge in edges]
        sound = np.array([len(ids) * edge for ids, edge in zip(self._buckets, edges)], float)
        self._shares = sound / sound.sum()

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._position])
        self._position += 1
        bucket = rng.choice(len(self._shares), p=self._shares)
        samples, rows = self._lengths[bucket], self._rows[bucket]
        frames = self._config.num_frames(samples)
        wav = np.zeros((rows, samples), np.float32)
        targets = np.full((rows, frames), -1, np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, i in enumerate(rng.choice(self._buckets[bucket], rows)):
            clip = self._clips[i][:samples].astype(np.float32)
            lengths[row] = len(clip)
            wav[row, : len(clip)] = distort(rng, clip)
            valid = min(self._config.num_frames(len(clip)), len(self._targets[i]))
            targets[row, :valid] = self._targets[i][:valid]
        mask = span_mask(rng, (rows, frames), self._masking)
        return {"wav": wav, "lengths": lengths, "mask": mask, "targets": targets}

    def state(self) -> bytes:
        return str(self._position).encode()

    def restore(self, state: bytes) -> None:
        self._position = int(state)
