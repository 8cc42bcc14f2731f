"""The shipped ears on shipped recordings."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.speech2unit import SHIPPED, Speech2Unit

CLIPS = SHIPPED.parent / "corpus" / "clips"


@pytest.fixture(scope="module")
def speech2unit():
    return Speech2Unit.from_pretrained()


@pytest.fixture(scope="module")
def wavs():
    rows = json.loads((CLIPS / "clips.json").read_text())
    return [load_audio(CLIPS / row["file"]) for row in rows[:4]]


def test_units_and_durations_cover_the_recording(speech2unit, wavs):
    for wav in wavs:
        units, durations = speech2unit(wav)
        assert units.min() >= 0 and units.max() < speech2unit.num_units == 200
        assert (units[1:] != units[:-1]).all() and (durations >= 1).all()
        assert durations.sum() == speech2unit.hubert.config.num_frames(len(wav))
        # Speech changes its unit 20 to 40 times a second.
        assert 20 < len(units) / (len(wav) / 16_000) < 40


def test_a_clip_has_the_same_units_alone_and_in_any_batch(speech2unit, wavs):
    alone = [speech2unit.cluster_ids([wav])[0] for wav in wavs]
    for ids, expected in zip(speech2unit.cluster_ids(wavs), alone):
        np.testing.assert_array_equal(ids, expected)


def test_half_the_level_changes_little(speech2unit, wavs):
    quiet = speech2unit.cluster_ids([0.5 * wavs[0]])[0]
    assert (quiet == speech2unit.cluster_ids([wavs[0]])[0]).mean() > 0.95


def test_too_short_and_silent_sound(speech2unit):
    units, durations = speech2unit(np.zeros(399, np.float32))
    assert len(units) == len(durations) == 0
    units, durations = speech2unit(np.zeros(16_000, np.float32))
    assert durations.sum() == 49


def test_damaged_folders_give_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json"):
        Speech2Unit.from_pretrained(tmp_path)
    folder = tmp_path / "hubert"
    shutil.copytree(SHIPPED, folder)
    centroids = safetensors.numpy.save({"cluster_centers": np.zeros((7, 3), np.float32)})
    (folder / "kmeans.safetensors").write_bytes(centroids)
    with pytest.raises(ValueError, match=r"shape \(7, 3\); expected \[clusters, 256\]"):
        Speech2Unit.from_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="missing or damaged"):
        Speech2Unit.from_pretrained(folder)
