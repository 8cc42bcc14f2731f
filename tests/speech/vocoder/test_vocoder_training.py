"""Losses, batches and discriminators of a tiny vocoder on synthetic recordings."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.local_copies import local_copies
from speechgpt_jax.speech.vocoder.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from speechgpt_jax.speech.vocoder.training import (
    VocoderBatches,
    VocoderObjective,
    calibrate_durations,
    mel_loss,
    prepare_rows,
    stft_loss,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder
from tests import local_bucket
from tests.speech.vocoder.tones import CONFIG, DISCRIMINATORS, write_tones

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"))


def batches(rows, **kwargs):
    defaults = {"batch_size": 4, "segment_codes": 32, "seed": 0}
    return VocoderBatches(prepare_rows(rows, CONFIG), CONFIG, **defaults | kwargs)


def test_a_batch_is_what_was_recorded(rows):
    batch = next(batches(rows, segment_codes=64))
    assert {name: value.shape for name, value in batch.items()} == {
        "codes": (4, 64),
        "mask": (4, 64),
        "wav": (4, 64 * 320),
        "hz": (4, 64),
        "voiced": (4, 64),
        "speakers": (4,),
        "units": (4, 64),
        "durations": (4, 64),
    }
    for i in range(4):
        length, num_units = int(batch["mask"][i].sum()), int((batch["durations"][i] > 0).sum())
        # Where a recording fits, all of it is there, and units repeated are the codes.
        if length < 64:
            durations = batch["durations"][i, :num_units].astype(int)
            repeated = np.repeat(batch["units"][i, :num_units], durations)
            np.testing.assert_array_equal(batch["codes"][i, :length], repeated)
            assert not batch["wav"][i, length * 320 :].any()
        hz = np.median(batch["hz"][i, :length])
        assert abs(hz - (100, 180)[batch["speakers"][i]]) < 3


def test_batches_resume(rows):
    whole, half = batches(rows), batches(rows)
    for _ in range(3):
        next(whole)
    half.restore(whole.state())
    expected, batch = next(whole), next(half)
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_other_speakers_are_left_out(rows):
    assert len(prepare_rows([*rows, rows[0] | {"speaker": "other"}], CONFIG)) == len(rows)
    with pytest.raises(ValueError, match="no row is left to train on"):
        prepare_rows([rows[0] | {"speaker": "other"}], CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("units", [6] * 6, "unit 6 is not among the vocoder's 6"),
        ("units", [], "at least one unit"),
        ("units", [-1] * 6, "unit -1 is not among the vocoder's 6"),
        ("durations", [1.5] * 6, r"duration 1\.5 is no whole number"),
        ("units", [0.5] * 6, "at least one unit"),
        ("durations", [1], "each of 6 units"),
        ("durations", [0] * 6, "each of 6 units"),
        ("durations", [float("nan")] * 6, "each of 6 units"),
        ("durations", [100] * 6, "beyond its end"),
    ],
)
def test_refuses_rows(rows, field, value, message):
    with pytest.raises(ValueError, match=message):
        prepare_rows([rows[0] | {field: value}], CONFIG)


def test_whole_durations_may_be_written_as_floats(rows):
    as_floats = rows[0] | {"durations": [float(x) for x in rows[0]["durations"]]}
    (row,) = prepare_rows([as_floats], CONFIG)
    assert row["durations"] == rows[0]["durations"]
    assert all(isinstance(duration, int) for duration in row["durations"])


def test_refuses_rows_without_a_field_or_a_file(rows, tmp_path):
    row = {name: value for name, value in rows[0].items() if name != "durations"}
    with pytest.raises(UserError, match=r"0\.wav has no durations"):
        prepare_rows([row], CONFIG)
    with pytest.raises(UserError, match=r"absent.wav can't be read"):
        prepare_rows([rows[0] | {"path": str(tmp_path / "absent.wav")}], CONFIG)


def test_refuses_another_sampling_rate(tmp_path, rows):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(ValueError, match="8000 Hz"):
        prepare_rows([rows[0] | {"path": str(tmp_path / "a.wav")}], CONFIG)


@pytest.mark.parametrize("suffix", ["raw", "snd"])
def test_a_suffix_is_not_believed(tmp_path, rows, suffix):
    path = tmp_path / f"a.{suffix}"
    shutil.copy(rows[0]["path"], path)
    row = rows[0] | {"path": str(path)}
    assert np.isfinite(next(batches([row]))["wav"]).all()
    path.write_bytes(9000 * b"text ")
    with pytest.raises(UserError, match=r"can't be read .*expected a wav"):
        prepare_rows([row], CONFIG)


def test_refuses_two_channels(tmp_path, rows):
    soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2)), 16000)
    with pytest.raises(ValueError, match="has 2 channels; expected mono"):
        prepare_rows([rows[0] | {"path": str(tmp_path / "a.wav")}], CONFIG)


def test_refuses_recordings_much_longer_than_their_durations(tmp_path, rows):
    wav, rate = soundfile.read(rows[0]["path"])
    for seconds in (0.3, 0.7):
        soundfile.write(tmp_path / f"{seconds}.wav", np.pad(wav, (0, round(seconds * rate))), rate)
    prepare_rows([rows[0] | {"path": str(tmp_path / "0.3.wav")}], CONFIG)
    with pytest.raises(UserError, match=r"0\.7\.wav lasts 0\.70 s longer than its dura"):
        prepare_rows([rows[0] | {"path": str(tmp_path / "0.7.wav")}], CONFIG)


@pytest.mark.parametrize("damage", ["nan", "huge", "cut.flac"])
def test_damage_is_named_when_it_is_read(tmp_path, rows, damage):
    wav, rate = soundfile.read(rows[0]["path"])
    path = str(tmp_path / damage)
    if damage == "cut.flac":
        soundfile.write(path, wav, rate)
        data = (tmp_path / damage).read_bytes()
        (tmp_path / damage).write_bytes(data[: len(data) // 2])
    else:
        soundfile.write(
            path, wav * {"nan": np.nan, "huge": 1e20}[damage], rate, "FLOAT", format="WAV"
        )
    with pytest.raises(UserError, match=f"^{path} (is damaged or cut off|holds NaN, infinite or)"):
        next(batches([rows[0] | {"path": path}]))


def test_recordings_on_a_bucket_are_read_from_their_copies(rows, tmp_path):
    folder = Path(rows[0]["path"]).parent
    remote = [row | {"path": f"gs://{Path(row['path']).name}"} for row in rows]
    absent = remote[0] | {"path": "gs://absent.wav"}
    paths = [row["path"] for row in [*remote, *remote, absent]]
    with local_bucket.below(folder), local_copies(paths) as copies:
        assert copies.keys() == set(paths)
        prepared = prepare_rows(remote, CONFIG, copies)
        found = next(VocoderBatches(prepared, CONFIG, batch_size=4, segment_codes=32, seed=0))
        with pytest.raises(UserError, match=r"gs://absent.wav can't be read"):
            prepare_rows([absent], CONFIG, copies)
    expected = next(batches(rows))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not any(map(os.path.exists, copies.values()))


def test_names_that_are_no_utf_8(tmp_path, rows):
    path = f"{tmp_path}/\udce9.wav"
    shutil.copy(rows[0]["path"], path)
    assert np.isfinite(next(batches([rows[0] | {"path": path}]))["wav"]).all()


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_calibrated_durations_last_as_long_as_wanted(rows, factor):
    vocoder, prepared = UnitVocoder(CONFIG, rngs=nnx.Rngs(0)), prepare_rows(rows, CONFIG)
    # Different durations around those of the recordings, as after a training.
    projection = vocoder.duration_predictor.proj
    projection.bias[...], projection.kernel[...] = jnp.log(7.0), projection.kernel[...] / 2
    calibrate_durations(vocoder, prepared, factor)
    units = [np.array(row["units"]) for row in prepared]
    speakers = np.array([row["speaker"] for row in prepared])
    predicted = sum(map(np.sum, vocoder.predict_durations(units, speakers)))
    recorded = sum(sum(row["durations"]) for row in prepared)
    assert predicted == pytest.approx(factor * recorded, rel=0.05)


def test_stft_loss_is_parallel_wavegans():
    rng = np.random.default_rng(0)
    wav, target = rng.standard_normal((2, 2, 4096), np.float32)
    expected = 0
    for n_fft in (512, 256):
        spectra = [
            torch.stft(
                torch.from_numpy(x),
                n_fft,
                n_fft // 4,
                window=torch.hann_window(n_fft),
                return_complex=True,
            ).abs()
            for x in (wav, target)
        ]
        convergence = torch.linalg.norm(spectra[1] - spectra[0]) / torch.linalg.norm(spectra[1])
        expected += convergence + (spectra[1].log() - spectra[0].log()).abs().mean()
    np.testing.assert_allclose(stft_loss(wav, target, (512, 256)), expected / 2, rtol=1e-3)
    assert stft_loss(target, target, (512, 256)) == mel_loss(target, target, 16000) == 0


def test_losses_of_discriminators():
    real, made = [[jnp.ones(3), jnp.ones(2)]], [[jnp.zeros(3), jnp.full(2, 0.5)]]
    assert discriminator_loss(real, made) == 0.25
    assert adversarial_loss(made) == 0.25
    assert feature_loss(real, made) == 1.0


def test_discriminators_look_at_periods_and_scales():
    discriminators = Discriminators(DISCRIMINATORS, rngs=nnx.Rngs(0))
    wav = np.random.default_rng(0).standard_normal((2, 1280), np.float32)
    features = discriminators(wav)
    # Every second sample in one row: 2 * 2 rows of 640, stride 3 and 1, then the score.
    assert [x.shape for x in features[0]] == [(4, 214, 4), (4, 214, 8), (4, 214, 1)]
    assert [x.shape[0] for x in features[1]] == [6, 6, 6]
    assert features[2][-1].shape == (2, 160, 1)
    assert features[3][-1].shape == (2, 81, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"periods": ()}, "periods"),
        ({"period_channels": ()}, "period_channels"),
        ({"scales": 0}, "scales 0 must be at least 1"),
        ({"scale_strides": (2, 4)}, r"scale_strides \(2, 4\), .* must be of one length"),
        ({"scale_channels": (4,), "scale_strides": (2,), "scale_groups": (1,)}, "at least two"),
        ({"scale_groups": (1, 3, 1)}, "scale_groups 3 must divide the channels 4 and 8"),
    ],
)
def test_discriminators_that_can_not_be_built_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DISCRIMINATORS, **changes)


def test_an_stft_loss_without_sizes_is_refused():
    with pytest.raises(UserError, match=r"stft_sizes \(\) must be of one length, at least 1"):
        VocoderObjective(stft_sizes=())


def test_an_stft_of_an_odd_size_is_refused():
    with pytest.raises(UserError, match="n_fft 255 must be even"):
        VocoderObjective(stft_sizes=(512, 255))
