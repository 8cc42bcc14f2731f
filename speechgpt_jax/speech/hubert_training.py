"""A small HuBERT learns another model's clusters: batches and loss.

HuBERT (Hsu et al. 2021) predicts cluster ids of another model's features; from a small start and in
minutes that signal is too thin for the convolutions to find any spectrum. So, as in DistilHuBERT
(Chang et al. 2022), nothing is masked, the centroid itself is regressed too, and the front end
alone must tell the log-mel spectrum.

Shapes: B batch, S samples, T frames, K clusters, E size of the teacher's features.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.signal
from flax import nnx

from speechgpt_jax.speech.hubert import Hubert, HubertConfig
from speechgpt_jax.speech.mel import log_mel

NUM_MELS = 40
CLUSTER_WEIGHT = 0.1


class HubertStudent(nnx.Module):
    """A HuBERT with three heads: centroid and cluster from its features, mel from its front end."""

    def __init__(self, config: HubertConfig, centroids: np.ndarray, *, rngs: nnx.Rngs):
        num_clusters, teacher_size = centroids.shape
        self.hubert = Hubert(config, rngs=rngs)
        self.centroid_head = nnx.Linear(config.hidden_size, teacher_size, rngs=rngs)
        self.cluster_head = nnx.Linear(config.hidden_size, num_clusters, rngs=rngs)
        self.mel_head = nnx.Linear(config.hidden_size, NUM_MELS, rngs=rngs)

    def __call__(self, wav: jax.Array, lengths: jax.Array):
        """wav [B, S], lengths [B] in samples -> centroids [B, T, E], logits [B, T, K], mels."""
        x = self.hubert.project(wav, lengths)
        features = self.hubert.encode(x, self.hubert.config.num_frames(lengths))
        return self.centroid_head(features), self.cluster_head(features), self.mel_head(x)


def standard_mel(wav: jax.Array, frames: jax.Array, hop: int) -> jax.Array:
    """wav [B, S], frames [B] -> log-mel [B, T, M], each band standardised within its clip."""
    wav = jnp.pad(wav, ((0, 0), (0, -wav.shape[1] % hop)))
    mel = jnp.maximum(log_mel(wav, 16_000, 2 * hop, hop, NUM_MELS, 8_000.0), -9.0)
    weights = (jnp.arange(mel.shape[1]) < frames[:, None])[..., None]
    weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1)
    mel = mel - (mel * weights).sum(1, keepdims=True)
    return mel * jax.lax.rsqrt((jnp.square(mel) * weights).sum(1, keepdims=True) + 1e-2)


def distillation_loss(
    model: HubertStudent, batch: dict[str, jax.Array], centroids: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared errors of centroid and mel, and cross-entropy of the cluster.

    Args:
      model: the student.
      batch: `wav` [B, S], `lengths` [B] in samples, and `targets` [B, T], cluster ids with -1
        where a clip has ended.
      centroids: [K, E], of mean 0 and variance 1 in each dimension.

    Returns:
      the loss, and its three parts with the accuracy of the cluster.
    """
    predicted, logits, mel = model(batch["wav"], batch["lengths"])
    config, targets = model.hubert.config, batch["targets"]
    true_mel = standard_mel(batch["wav"], config.num_frames(batch["lengths"]), config.hop)
    true_mel = true_mel[:, : mel.shape[1]]
    valid = targets >= 0
    targets = jnp.maximum(targets, 0)

    def mean(values):  # BT -> the mean over valid frames
        return (values * valid).sum() / jnp.maximum(valid.sum(), 1)

    losses = {
        "centroid_error": mean(jnp.square(predicted - centroids[targets]).mean(-1)),
        "mel_error": mean(jnp.square(mel - true_mel).mean(-1)),
        "cluster_loss": mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets)),
    }
    loss = losses["centroid_error"] + losses["mel_error"] + CLUSTER_WEIGHT * losses["cluster_loss"]
    return loss, {"loss": loss, **losses, "accuracy": mean(logits.argmax(-1) == targets)}


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


class HubertBatches:
    """Endless batches of random crops of `crop_seconds`, `rows` at a time; short clips are padded.

    Batch n is a function of (seed, n) alone, so the position is one number.
    """

    def __init__(
        self,
        clips: list[np.ndarray],  # [S] each, of any scale: it is drawn anew
        targets: list[np.ndarray],  # [T] each, 50 a second
        config: HubertConfig,
        *,
        rows: int,
        crop_seconds: float,
        seed: int,
    ):
        self._clips, self._targets, self._config = clips, targets, config
        self._rows, self._seed, self._position = rows, seed, 0
        self._samples = round(crop_seconds * 16_000)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._position])
        self._position += 1
        wav = np.zeros((self._rows, self._samples), np.float32)
        targets = np.full((self._rows, self._config.num_frames(self._samples)), -1, np.int32)
        lengths = np.zeros(self._rows, np.int32)
        for row, i in enumerate(rng.choice(len(self._clips), self._rows)):
            hop = self._config.hop
            first = rng.integers(max(0, len(self._clips[i]) - self._samples) // hop + 1)
            clip = self._clips[i][first * hop :][: self._samples].astype(np.float32)
            lengths[row] = len(clip)
            wav[row, : len(clip)] = distort(rng, clip)
            ids = self._targets[i][first:][: self._config.num_frames(len(clip))]
            targets[row, : len(ids)] = ids
        return {"wav": wav, "lengths": lengths, "targets": targets}

    def state(self) -> bytes:
        return str(self._position).encode()

    def restore(self, position: bytes) -> None:
        self._position = int(position)
