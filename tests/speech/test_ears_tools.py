"""A unit space from nothing but sound: clusters of MFCCs, a HuBERT, centroids of its features."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from speechgpt_jax.speech.audio import save_audio
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.encoder.training import MaskedPrediction
from speechgpt_jax.training.optimizer import AdamW
from tools import hubert_targets, train_hubert, train_kmeans

SMALL = HubertConfig(
    conv_dim=(8, 16, 16),
    conv_kernel=(10, 8, 8),
    conv_stride=(5, 8, 8),
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    position_kernel=8,
    position_groups=4,
    feature_layer=1,
)


def run(monkeypatch, main, **arguments):
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", ["tool", *flags])
    main()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Noise through a slowly moving resonance."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    with (folder / "manifest.jsonl").open("w") as rows:
        for i in range(6):
            noise = rng.standard_normal(12_000 + 1_000 * i)
            level = 1 + np.sin(np.arange(len(noise)) / 1_000 * (i + 1))
            save_audio(folder / f"{i}.wav", (0.1 * level * noise).astype(np.float32))
            rows.write(json.dumps({"path": f"{i}.wav", "split": "train"}) + "\n")
    return folder / "manifest.jsonl"


def train(targets, output_dir, steps):
    train_hubert.train(
        targets=str(targets),
        output_dir=str(output_dir),
        model=SMALL,
        objective=MaskedPrediction(),
        optimizer=AdamW(1e-3, schedule="constant"),
        steps=steps,
        batch_size=2,
        crop_seconds=0.5,
        distorted=False,
    )
    return safetensors.numpy.load_file(output_dir / "hubert" / "model.safetensors")


def test_a_unit_space_from_scratch(manifest, tmp_path, monkeypatch):
    targets, folder = tmp_path / "targets", tmp_path / "run" / "hubert"
    sound = {"manifest": manifest, "output": targets, "num_clusters": 5, "hours": 0.1}
    run(monkeypatch, hubert_targets.main, teacher="mfcc", **sound)
    whole = train(targets, tmp_path / "whole", 3)
    train(targets, tmp_path / "run", 2)
    resumed = train(targets, tmp_path / "run", 3)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])

    fit = {"hubert": folder, "manifest": manifest, "num_clusters": 4}
    run(monkeypatch, train_kmeans.main, steps=5, **fit)
    lloyd = Speech2Unit.from_pretrained(folder)
    run(monkeypatch, train_kmeans.main, steps=5, work_dir=tmp_path / "k", batch_frames=64, **fit)
    assert lloyd.centroids.shape == Speech2Unit.from_pretrained(folder).centroids.shape == (4, 16)
    units, durations = lloyd(np.random.default_rng(1).standard_normal(16_000).astype(np.float32))
    assert durations.sum() == 49 and units.max() < 4

    # The next iteration listens to this one.
    (features,) = hubert_targets.make_teacher(str(folder))([np.zeros(8_000, np.float32)])
    assert features.shape == (24, 16)


def test_going_on_from_another_shape_gives_one_clear_line(tmp_path):
    learner = MaskedPrediction().learner(SMALL, np.arange(3), nnx.Rngs(0))
    other = Hubert(dataclasses.replace(SMALL, num_layers=1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"not of the run's shape.*layers.1"):
        train_hubert.placed_like(nnx.state(learner.hubert), nnx.state(other))
