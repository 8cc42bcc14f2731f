"""The student learns a teacher's clusters, and its batches resume."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from speechgpt_jax.speech.hubert import HubertConfig
from speechgpt_jax.speech.hubert_training import HubertBatches, HubertStudent, distillation_loss

SMALL = HubertConfig(
    conv_dim=(8, 8, 16, 16, 16, 16, 16),
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    position_kernel=8,
    position_groups=4,
    feature_layer=1,
)


def make_batches(seed: int) -> HubertBatches:
    """Clips of three tones; the target of a frame is the number of its tone."""
    rng = np.random.default_rng(0)
    clips, targets = [], []
    for seconds in rng.uniform(0.4, 1.2, size=30):
        tones = rng.integers(3, size=8)
        samples = round(seconds * 16_000)
        which = tones[np.arange(samples) * 8 // samples]
        phase = 2 * np.pi * np.array([300, 900, 2_700])[which] * np.arange(samples) / 16_000
        clips.append((10_000 * np.sin(phase)).astype(np.int16))
        frames = np.arange(SMALL.num_frames(samples))
        targets.append(which[frames * 320 + 200].astype(np.int16))
    return HubertBatches(clips, targets, SMALL, rows=4, crop_seconds=0.8, seed=seed)


def test_batches_resume_where_they_were():
    batches, again = make_batches(1), make_batches(1)
    for _ in range(3):
        next(batches)
    again.restore(batches.state())
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, next(batches), next(again))


def test_crops_keep_their_targets_and_padding_has_none():
    batch = next(make_batches(2))
    assert batch["wav"].shape == (4, 12_800)
    frames = SMALL.num_frames(batch["lengths"])
    for targets, n in zip(batch["targets"], frames):
        assert (targets[:n] >= 0).all() and (targets[n:] == -1).all()


def test_it_learns_to_tell_tones_apart():
    batches = make_batches(3)
    centroids = jnp.eye(3, 5)
    graphdef, params = nnx.split(HubertStudent(SMALL, centroids, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, opt_state, batch):
        def loss_fn(params):
            return distillation_loss(nnx.merge(graphdef, params), batch, centroids)

        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state = optimizer.init(params)
    for _ in range(120):
        params, opt_state, metrics = step(params, opt_state, next(batches))
    assert metrics["accuracy"] > 0.8
