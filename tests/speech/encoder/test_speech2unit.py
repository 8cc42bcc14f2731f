"""The shipped speech encoder on shipped recordings."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import ASSETS, SHIPPED_HUBERT
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.cpu import devices
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import batching, windows
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tests.compilations import compiled_programs

CLIPS = ASSETS / "corpus" / "clips"


@pytest.fixture(scope="module")
def speech2unit():
    return Speech2Unit.from_pretrained()


@pytest.fixture(scope="module")
def wavs():
    rows = json.loads((CLIPS / "clips.json").read_text())
    return [load_audio(CLIPS / row["file"]) for row in rows[:4]]


@pytest.mark.slow
def test_units_and_durations_cover_the_recording(speech2unit, wavs):
    for wav in wavs:
        units, durations = speech2unit(wav)
        assert units.min() >= 0 and units.max() < speech2unit.num_units == 200
        assert (units[1:] != units[:-1]).all() and (durations >= 1).all()
        assert durations.sum() == speech2unit.hubert.config.num_frames(len(wav))
        # Speech changes its unit 20 to 40 times a second.
        assert 20 < len(units) / (len(wav) / 16_000) < 40


@pytest.mark.slow
def test_a_clip_has_the_same_units_alone_and_in_any_batch(speech2unit, wavs):
    alone = [speech2unit.cluster_ids([wav])[0] for wav in wavs]
    for ids, expected in zip(speech2unit.cluster_ids(wavs), alone):
        np.testing.assert_array_equal(ids, expected)


@pytest.mark.slow
def test_products_of_bfloat16_change_few_units(speech2unit, wavs):
    fast = Speech2Unit.from_pretrained(dtype="bfloat16")
    rounded, exact = (np.concatenate(encoder.features(wavs)) for encoder in (fast, speech2unit))
    assert 0.001 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.01
    equal = [a == b for a, b in zip(fast.cluster_ids(wavs), speech2unit.cluster_ids(wavs))]
    assert np.concatenate(equal).mean() > 0.985


@pytest.mark.slow
def test_a_batch_may_hold_anything(speech2unit, wavs):
    silence = np.zeros(16_000, np.float32)
    batch = [wavs[0], np.zeros(0, np.float32), silence, silence[:399], silence[:400]]
    ids = speech2unit.cluster_ids(batch)
    assert [len(row) for row in ids] == [len(speech2unit.cluster_ids(wavs[:1])[0]), 0, 49, 0, 1]
    np.testing.assert_array_equal(ids[2], speech2unit.cluster_ids([silence])[0])
    assert speech2unit.cluster_ids([]) == []


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros((2, 16_000), np.float32), r"mono sound.*float32 \[2, 16000\]"),
        (np.zeros(16_000, np.int16), r"float \[samples\] in \[-1, 1\].*int16"),
        (np.full(16_000, np.nan, np.float32), "NaN"),
        (np.full(16_000, 1e30, np.float32), "too large"),
    ],
)
def test_other_than_mono_float_sound_is_refused_in_one_line(speech2unit, wav, message):
    with pytest.raises(UserError, match=message):
        speech2unit.cluster_ids([wav])


@pytest.fixture(scope="module")
def minute(wavs):
    """A minute of speech: several recordings joined."""
    rows = json.loads((CLIPS / "clips.json").read_text())
    sound = np.concatenate([load_audio(CLIPS / row["file"]) for row in rows])
    return np.resize(sound, 60 * 16_000 + 123)


@pytest.mark.slow
def test_a_long_recording_has_the_units_of_one_window(speech2unit, minute):
    whole = dataclasses.replace(speech2unit, whole_seconds=100).cluster_ids([minute])[0]
    in_windows, short = speech2unit.cluster_ids([minute, minute[:8_000]])
    assert len(in_windows) == len(whole) == speech2unit.hubert.config.num_frames(len(minute))
    # Frames attend to nearby frames, and windows overlap by that many: only rounding differs.
    assert (in_windows == whole).mean() > 0.995
    assert len(short) == 24


@pytest.mark.slow
@pytest.mark.parametrize("norm_first", [False, True])
def test_frames_attend_to_all_of_a_long_recording(minute, norm_first, monkeypatch):
    # A fifth of the usual lengths: recordings over 20 s are encoded in windows, over 8 s in parts.
    monkeypatch.setattr(windows, "WIDE_WINDOW", 1000)
    monkeypatch.setattr(batching, "PART_FRAMES", 100)
    config = HubertConfig(
        conv_dim=(4,) * 7,
        hidden_size=32,
        num_layers=3,
        num_heads=2,
        intermediate_size=48,
        norm_first=norm_first,
        feature_layer=2,
    )
    hubert = for_inference(Hubert(config, rngs=nnx.Rngs(0)))
    in_parts, at_once = Speech2Unit(hubert, None, 8), Speech2Unit(hubert, None, 26)
    wav = minute[: 12 * 16_000 + 123]
    (expected,) = at_once.features([wav])
    np.testing.assert_allclose(in_parts.features([wav])[0], expected, atol=2e-3)
    # Silence instead of the end changes the features of the beginning.
    (changed,) = in_parts.features([wav * (np.arange(len(wav)) < 7 * 16_000)])
    assert np.abs(changed[:50] - expected[:50]).max() > 0.01
    twice = np.tile(wav, 2)
    # Windows change little.
    (features,), (whole,) = in_parts.features([twice]), at_once.features([twice])
    assert features.shape == whole.shape == (config.num_frames(len(twice)), 32)
    assert 0 < np.abs(features - whole).mean() < 0.1 * np.abs(whole).mean()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_warm_up_compiles_for_every_length(num_workers, monkeypatch):
    """Short recordings leave workers without a piece, and run on the whole device."""
    parallelism = devices.Parallelism(num_workers, rows=1)
    monkeypatch.setattr(devices, "parallelism", lambda: parallelism)
    config = HubertConfig(
        conv_dim=(2,) * 7,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        intermediate_size=48,
        feature_layer=1,
        attention_frames=50,
    )
    hubert = for_inference(Hubert(config, rngs=nnx.Rngs(0)))
    speech2unit = Speech2Unit(hubert, np.zeros((5, 32), np.float32), whole_seconds=10)
    speech2unit.warm_up(13)
    with compiled_programs() as compiled:
        for seconds in np.arange(0.5, 13.1, 0.5):
            speech2unit(np.zeros(int(seconds * 16_000), np.float32))
    assert not compiled


@pytest.mark.slow
def test_half_the_level_changes_little(speech2unit, wavs):
    quiet = speech2unit.cluster_ids([0.5 * wavs[0]])[0]
    assert (quiet == speech2unit.cluster_ids([wavs[0]])[0]).mean() > 0.95


@pytest.mark.slow
def test_too_short_and_silent_sound(speech2unit):
    units, durations = speech2unit(np.zeros(399, np.float32))
    assert len(units) == len(durations) == 0
    units, durations = speech2unit(np.zeros(16_000, np.float32))
    assert durations.sum() == 49


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no config.json"):
        Speech2Unit.from_pretrained(tmp_path)
    folder = tmp_path / "hubert"
    shutil.copytree(SHIPPED_HUBERT, folder)
    centroids = safetensors.numpy.save({"cluster_centers": np.zeros((7, 3), np.float32)})
    (folder / "kmeans.safetensors").write_bytes(centroids)
    with pytest.raises(UserError, match=r"shape \(7, 3\); expected \[clusters, 37\]"):
        Speech2Unit.from_pretrained(folder)
    (folder / "kmeans.safetensors").write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(UserError, match=r"holds \['a'\]; expected cluster_centers"):
        Speech2Unit.from_pretrained(folder)
    config = json.loads((ASSETS / "hubert" / "config.json").read_text())
    for changes, message in (
        ({"conv_kernal": [1]}, "config.json has conv_kernal: it is not that of a HuBERT"),
        ({"num_heads": 5}, "config.json: hidden_size 384 must be a multiple of num_heads 5"),
        ({"hidden_size": "384"}, 'config.json has hidden_size "384"; expected a whole number'),
        ({"hidden_size": 384.5}, "config.json has hidden_size 384.5; expected a whole number"),
        ({"norm_first": "no"}, 'config.json has norm_first "no"; expected true or false'),
        ({"num_layers": None}, "config.json has num_layers null; expected a whole number"),
        ({"conv_dim": 80}, "config.json has conv_dim 80; expected a list"),
        ({"hidden_size": 10**30}, "config.json: hidden_size 10+ must be at most"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            Speech2Unit.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Speech2Unit.from_pretrained(folder)
    shutil.copytree(SHIPPED_HUBERT, folder, dirs_exist_ok=True)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="missing or damaged"):
        Speech2Unit.from_pretrained(folder)
