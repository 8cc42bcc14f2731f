"""A unit space from nothing but sound: clusters of MFCCs, a HuBERT, centroids of its features."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import gin
from speechgpt_jax import gin_utils
from speechgpt_jax.corpus.hubert_targets import make_teacher
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.speech.audio import save_audio
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, save_hubert
from speechgpt_jax.speech.encoder.targets import load_targets, save_targets
from speechgpt_jax.speech.encoder.training import Distillation, MaskedPrediction
from speechgpt_jax.training import train_hubert
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.train_kmeans import extract_features
from tests import local_bucket, processes
from tools import hubert_targets, train_kmeans

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Noise whose level rises and falls, faster from one recording to the next."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    with (folder / "manifest.jsonl").open("w") as rows:
        for i in range(6):
            noise = rng.standard_normal(12_000 + 1_000 * i)
            level = 1 + np.sin(np.arange(len(noise)) / 1_000 * (i + 1))
            save_audio(folder / f"{i}.wav", (0.1 * level * noise).astype(np.float32))
            rows.write(json.dumps({"path": f"{i}.wav", "split": "train"}) + "\n")
    return folder / "manifest.jsonl"


def train(targets, output_dir, steps, **changes):
    arguments = {
        "targets": targets,
        "output_dir": output_dir,
        "model": SMALL,
        "objective": MaskedPrediction(),
        "optimizer": AdamW(1e-3, schedule="constant"),
        "steps": steps,
        "batch_size": 2,
        "crop_seconds": 0.5,
        "distorted": False,
        "max_speed": 1.25,
    }
    train_hubert.train(**arguments | changes)
    return safetensors.numpy.load_file(output_dir / "hubert" / "model.safetensors")


def test_a_unit_space_from_scratch(manifest, tmp_path):
    targets, folder = tmp_path / "targets", tmp_path / "run" / "hubert"
    hubert_targets.main(
        [
            f"--manifest={manifest}",
            f"--output={targets}",
            "--teacher=mfcc",
            "--num_clusters=5",
            "--hours=0.1",
        ]
    )
    whole = train(targets, tmp_path / "whole", 3)
    train(targets, tmp_path / "run", 2)
    resumed = train(targets, tmp_path / "run", 3)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])

    fit = [f"--hubert={folder}", f"--manifest={manifest}", "--num_clusters=4", "--steps=5"]
    # A refused number of clusters leaves nothing that the corrected command would have to match.
    with pytest.raises(UserError, match="feature vectors cannot make 100000 clusters"):
        train_kmeans.main([*fit, "--num_clusters=100000"])
    train_kmeans.main(fit)
    lloyd = Speech2Unit.from_pretrained(folder)
    with pytest.raises(UserError, match=r"hubert/kmeans.safetensors exists; name another folder"):
        train_kmeans.main(fit)
    (folder / "kmeans.safetensors").unlink()
    # What was fitted with other settings is not taken for the result.
    for change in ("--tries=2", "--num_clusters=3", "--batch_frames=64"):
        name = change[2:].partition("=")[0]
        with pytest.raises(UserError, match=rf"/kmeans was begun with {name}"):
            train_kmeans.main([*fit, change])
    train_kmeans.main([*fit, f"--work_dir={tmp_path}/k", "--batch_frames=64"])
    assert lloyd.centroids.shape == Speech2Unit.from_pretrained(folder).centroids.shape == (4, 16)
    units, durations = lloyd(np.random.default_rng(1).standard_normal(16_000).astype(np.float32))
    assert durations.sum() == 49 and units.max() < 4

    # Features that were kept of one HuBERT are not taken for those of another.
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "kmeans.safetensors").unlink()
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    safetensors.numpy.save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"/k was begun with different hubert"):
        train_kmeans.main([f"--hubert={other}", *fit[1:], f"--work_dir={tmp_path}/k"])
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is not a file, and a run writes a file"):
        train_kmeans.main([f"--hubert={other}", *fit[1:], f"--work_dir={tmp_path}"])
    # A name of bytes that are not UTF-8 is a name too.
    (tmp_path / "odd.jsonl").write_text(r'{"path": "\udce9.wav", "split": "train"}')
    odd = ["--work_dir=" + str(tmp_path / "odd"), f"--manifest={tmp_path}/odd.jsonl"]
    with pytest.raises(UserError, match="wav of the manifest isn't there"):
        train_kmeans.main([f"--hubert={other}", *fit[1:], *odd])
    assert not (tmp_path / "odd").exists()

    # The folder of the features may be on a bucket.
    paths = [row["path"] for row in read_manifest(manifest)]
    with local_bucket.below(tmp_path):
        given, kept = (extract_features(folder, paths, f"gs://{name}") for name in ("f", "f"))
        clips, _ = load_targets("gs://targets")
    [local] = extract_features(folder, paths, tmp_path / "g")
    for features in (*given, *kept):
        np.testing.assert_array_equal(features, local)
    assert len(clips) == len(paths)
    # A copy that fails is not taken for damage.
    (tmp_path / "uncopied" / "sound.npy").mkdir(parents=True)
    (tmp_path / "uncopied" / "sound.npy" / "gone").symlink_to("nowhere")
    failed = pytest.raises(UserError, match=r"^gs://uncopied/sound\.npy can't be copied to")
    with local_bucket.below(tmp_path), failed:
        load_targets("gs://uncopied")

    # This HuBERT is the teacher of the next iteration.
    (features,) = make_teacher(folder)([np.zeros(8_000, np.float32)])
    assert features.shape == (24, 16)


@pytest.fixture
def clusters(tmp_path):
    """Folder of a clip of a second and its 49 cluster ids."""
    save_targets(tmp_path / "targets", [np.zeros(16_000, np.float32)], [np.arange(49) % 3])
    return tmp_path / "targets"


def test_starting_from_other_sizes_is_one_clear_line(clusters, tmp_path):
    other = Hubert(dataclasses.replace(SMALL, num_layers=1), rngs=nnx.Rngs(0))
    save_hubert(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"start_from has other sizes .*layers\.1"):
        train(clusters, tmp_path / "run", 1, start_from=tmp_path / "other")


def test_the_written_hubert_may_keep_a_share_of_the_start(clusters, tmp_path):
    start = Hubert(SMALL, rngs=nnx.Rngs(0))
    save_hubert(tmp_path / "start", start)
    options = {"start_from": tmp_path / "start", "optimizer": AdamW(0.1, schedule="constant")}
    trained = train(clusters, tmp_path / "run", 3, **options)
    # The run is complete: it only writes its HuBERT again.
    mean = train(clusters, tmp_path / "run", 3, **options, start_share=0.25)
    begun = safetensors.numpy.load_file(tmp_path / "start" / "model.safetensors")
    for name in trained:
        expected = 0.75 * trained[name].astype(np.float32) + 0.25 * begun[name]
        np.testing.assert_allclose(mean[name], expected, rtol=2e-3, atol=1e-3)
    assert any(np.abs(trained[name] - begun[name]).max() > 0.05 for name in trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_share": 0.5}, r"start_share 0.5 needs start_from"),
        ({"start_share": 1.5}, r"train_hubert.train.start_share 1.5 must be"),
        ({"steps": 0}, r"train_hubert.train.steps 0 must be at least 1"),
        ({"seed": -1}, r"train_hubert.train.seed -1 must be at least 0"),
        ({"batch_size": -1}, r"train_hubert.train.batch_size -1 must be at least 1"),
        ({"batch_size": 10**9}, r"train.batch_size 1000000000: the data of one batch would take"),
        (
            {"crop_seconds": float("nan")},
            r"train_hubert.train.crop_seconds nan must be finite and above 0",
        ),
        ({"crop_seconds": 0.01}, r"crop_seconds 0.01 is shorter than a frame"),
        ({"objective": Distillation()}, r"cluster ids; Distillation needs features: call"),
    ],
)
def test_values_that_make_no_sense_are_one_clear_line(clusters, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(clusters, tmp_path / "run", **{"steps": 1} | changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_in_it(clusters, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints is not a folder, and a run writes a folder"):
        train(clusters, tmp_path, steps=1)


@pytest.mark.parametrize(
    ("recipe", "objective"),
    [
        ("hubert_base", MaskedPrediction()),
        ("hubert_from_whisper", Distillation()),
        ("hubert_masked", MaskedPrediction(unmasked_weight=0.5)),
    ],
)
def test_recipes_bind_the_names_that_they_always_had(recipe, objective):
    bindings = ["train_hubert.train.steps = 5", "optimizer.AdamW.learning_rate = 1e-6"]
    gin_utils.parse([f"gin/runs/{recipe}.gin"], bindings)
    assert gin.query_parameter("train_hubert.train.steps") == 5
    assert gin_utils.call(AdamW).learning_rate == 1e-6
    assert gin_utils.call(type(objective)) == objective


def test_the_command_checks_its_flags_and_what_gin_binds(tmp_path):
    def error_of(*flags):
        arguments = ["tools.train_hubert", f"--output_dir={tmp_path}/run", *flags]
        done = processes.run(processes.run_module, *arguments)
        assert done.returncode == 1
        return done.stderr

    error = error_of(f"--targets={tmp_path}/nowhere")
    assert error.startswith("Error: flag --targets=") and "expected a path that exists" in error
    assert error.count("\n") == 1
    # The number is checked before the targets are read.
    given = ["--gin_file=gin/runs/hubert_from_whisper.gin", "--gin.train_hubert.train.steps=0"]
    expected = "Error: train_hubert.train.steps 0 must be at least 1.\n"
    assert error_of(f"--targets={tmp_path}", *given) == expected
