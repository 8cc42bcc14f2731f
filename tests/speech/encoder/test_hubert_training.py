"""Both objectives learn, batches resume, and a mesh of devices computes as one device does."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.training import (
    Distillation,
    HubertBatches,
    MaskedPrediction,
    sample_spans,
)
from tests import processes

pytestmark = pytest.mark.slow

SMALL = HubertConfig(
    conv_dim=(8, 16, 16),
    conv_kernel=(10, 8, 8),
    conv_stride=(5, 8, 8),
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    position_kernel=8,
    position_groups=4,
    feature_layer=1,
)
# Tones last about a tenth of a second: two masked frames can be predicted.
MASKED = MaskedPrediction(mask_start=0.1, mask_frames=2, unmasked_weight=0.5)


def make_batches(
    seed: int, rows: int = 4, distorted: bool = True, max_speed: float = 1.25
) -> HubertBatches:
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
    return HubertBatches(
        clips,
        targets,
        SMALL,
        rows=rows,
        crop_seconds=0.8,
        distorted=distorted,
        max_speed=max_speed,
        seed=seed,
    )


def test_batches_resume():
    batches, again = make_batches(1), make_batches(1)
    for _ in range(3):
        next(batches)
    again.restore(batches.state())
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, next(batches), next(again))


def test_crops_keep_their_targets_and_padding_has_none():
    batch = next(make_batches(2, distorted=False, max_speed=1))
    assert batch["wav"].shape == (4, 12_800)
    assert abs(np.abs(batch["wav"]).max() - 10_000 / 32_768) < 1e-3
    frames = SMALL.num_frames(batch["lengths"])
    for targets, n in zip(batch["targets"], frames):
        assert (targets[:n] >= 0).all() and (targets[n:] == -1).all()


def test_targets_follow_the_speed():
    samples = np.arange(SAMPLE_RATE)
    tone = np.where(samples < SAMPLE_RATE // 2, 300, 2_700)
    clip = (10_000 * np.sin(2 * np.pi * np.cumsum(tone) / SAMPLE_RATE)).astype(np.int16)
    frames = SMALL.num_frames(SAMPLE_RATE)
    targets = (np.arange(frames) * 320 + 200 >= SAMPLE_RATE // 2).astype(np.int16)
    options = {"rows": 8, "crop_seconds": 1.6, "distorted": False, "max_speed": 1.5, "seed": 0}
    batch = next(HubertBatches([clip], [targets], SMALL, **options))
    assert batch["lengths"].max() > 1.2 * SAMPLE_RATE > SAMPLE_RATE / 1.2 > batch["lengths"].min()
    for wav, length, targets in zip(batch["wav"], batch["lengths"], batch["targets"]):
        (change,) = np.flatnonzero(np.diff(targets[targets >= 0]))
        # Zero crossings before and after the frames at which the target changes.
        crossings = np.diff(np.sign(wav[:length])) != 0
        before, after = crossings[: change * 320].mean(), crossings[(change + 3) * 320 :].mean()
        assert 6 < after / before < 12


def with_features(batch):
    """The batch with a vector for each tone instead of its number."""
    vectors = np.random.default_rng(0).choice([-1.0, 1.0], (4, SMALL.hidden_size))
    vectors[-1] = 0
    return batch | {"targets": vectors.astype(np.float32)[batch["targets"]]}


@pytest.mark.parametrize(
    ("objective", "targets", "prepare", "metric", "low", "high"),
    [
        (Distillation(), [np.zeros((9, SMALL.hidden_size))], with_features, "loss", 0.0, 0.5),
        (MASKED, [np.arange(3)], dict, "accuracy", 0.7, 1.0),
    ],
    ids=["distillation", "masked"],
)
def test_an_objective_learns_to_tell_tones_apart(objective, targets, prepare, metric, low, high):
    batches = map(prepare, make_batches(3))
    learner = objective.learner(SMALL, targets, nnx.Rngs(0))
    graphdef, params, constants = nnx.split(learner, nnx.Param, ...)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, opt_state, batch, key):
        def loss_fn(params):
            loss, metrics = nnx.merge(graphdef, params, constants).loss(batch, key)
            return loss, {"loss": loss, **metrics}

        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, values = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(0), 150):
        params, opt_state, metrics = step(params, opt_state, next(batches), key)
        values.append(float(metrics[metric]))
    assert low <= np.mean(values[-10:]) <= high


def test_targets_of_the_other_kind_give_one_clear_line():
    features, ids = [np.zeros((9, 5))], [np.zeros(9, int)]
    with pytest.raises(UserError, match=r"are features; MaskedPrediction needs cluster ids: call"):
        MASKED.learner(SMALL, features, nnx.Rngs(0))
    with pytest.raises(UserError, match=r"are cluster ids; Distillation needs features: call"):
        Distillation().learner(SMALL, ids, nnx.Rngs(0))
    with pytest.raises(
        UserError, match=r"\[frames, 5\]; this HuBERT's features are \[frames, 32\]"
    ):
        Distillation().learner(SMALL, features, nnx.Rngs(0))


@pytest.mark.parametrize(
    "values",
    [
        {"mask_start": 0.0},
        {"mask_frames": 0},
        {"temperature": float("nan")},
        {"unmasked_weight": 2},
    ],
)
def test_an_objective_that_can_not_work_is_refused(values):
    with pytest.raises(UserError, match=next(iter(values))):
        MaskedPrediction(**values)


def test_crops_of_features_end_in_zeros():
    features = [np.ones((20, 3), np.float16)]
    clips = [np.ones(6_600, np.int16)]
    options = {"rows": 2, "crop_seconds": 0.8, "distorted": False, "max_speed": 1, "seed": 0}
    batch = next(HubertBatches(clips, features, SMALL, **options))
    assert batch["targets"].shape == (2, SMALL.num_frames(12_800), 3)
    assert (batch["targets"][:, :20] == 1).all() and not batch["targets"][:, 20:].any()


def test_spans_have_their_length_and_share():
    masked = np.asarray(sample_spans(jax.random.key(0), (1_000, 400), 0.08, 10))
    for row in masked:
        edges = np.flatnonzero(np.diff(row.astype(int), prepend=0, append=0))
        lengths = edges[1::2] - edges[::2]
        assert (lengths[:-1] >= 10).all()
    # A frame is unmasked if none of the ten spans that could cover it begins.
    assert abs(masked[:, 10:].mean() - (1 - 0.92**10)) < 0.02


@pytest.mark.parametrize(
    "objective", [MaskedPrediction(mask_start=1.0), Distillation()], ids=["masked", "distillation"]
)
def test_crops_are_trained_at_all_positions(objective):
    config = dataclasses.replace(SMALL, position_period=1_500)
    targets = [np.arange(3)] if isinstance(objective, MaskedPrediction) else [np.ones((3, 32))]
    learner = objective.learner(config, targets, nnx.Rngs(0))
    batch = next(make_batches(0))
    batch = batch if isinstance(objective, MaskedPrediction) else with_features(batch)
    # Every frame is masked, or none: only the positions differ from one key to the next.
    keys = jax.random.split(jax.random.key(0), 4)
    loss = nnx.jit(lambda learner, key: learner.loss(batch, key)[0])
    losses = {float(loss(learner, key)) for key in keys}
    assert len(losses) == 4


def test_masked_frames_do_not_reach_the_logits():
    learner = MASKED.learner(SMALL, [np.arange(3)], nnx.Rngs(0))
    wavs = np.random.default_rng(0).standard_normal((2, 8_000)).astype(np.float32)
    lengths = np.array([8_000, 8_000])
    masked = np.ones((2, SMALL.num_frames(8_000)), bool)
    first, second = nnx.jit(lambda m, *x: m(*x))(learner, wavs, lengths, masked)
    np.testing.assert_array_equal(first, second)


# Eight simulated devices need a flag that is read before JAX starts, hence another process.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from speechgpt_jax import sharding
from speechgpt_jax.speech.encoder import kmeans
from tests.speech.encoder.test_hubert_training import MASKED, SMALL, make_batches
from speechgpt_jax.training.train_hubert import make_train_step
from speechgpt_jax.training.train_step import TrainState

batch = next(make_batches(0, rows=8))
features = np.random.default_rng(0).standard_normal((800, 6)).astype(np.float32)

def make_learner():
    return MASKED.learner(SMALL, [np.arange(3)], nnx.Rngs(0))

graphdef, _, constants = nnx.split(make_learner(), nnx.Param, ...)
tx = optax.sgd(1.0)  # The parameters' change is the gradient.
step = jax.jit(make_train_step(graphdef, constants, tx, seed=0))

def run(mesh, params):
    with sharding.use_mesh(mesh):
        state, metrics = step(TrainState.create(params, tx), sharding.place_batch(batch, mesh))
        placed = sharding.place_batch({"features": features}, mesh)["features"]
        clusters = kmeans.Clusters(jnp.zeros((), int), features[:5], jnp.zeros(5))
        clusters, inertia = kmeans.update(clusters, placed, decay=1.0)
    return jax.device_get((state.params, metrics, clusters, inertia))

mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=2, model=2))
params = sharding.create_sharded(lambda: nnx.state(make_learner(), nnx.Param), mesh)
one = sharding.create_mesh(sharding.MeshConfig(), jax.devices()[:1])
expected = run(one, jax.device_put(params, sharding.NamedSharding(one, sharding.PartitionSpec())))
for a, b in zip(jax.tree.leaves(run(mesh, params)), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
kernel = params["hubert"]["layers"][0]["intermediate_dense"]["kernel"][...]
assert kernel.addressable_shards[0].data.size == kernel.size // 4
print("equal")
"""


def test_a_mesh_of_devices_learns_as_one_device():
    done = processes.run(processes.run_on_eight_devices, PROGRAM)
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]
