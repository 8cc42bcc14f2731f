"""Targets of a HuBERT: directions of features that separate phones for all speakers."""

import json
import shutil

import av
import numpy as np
import pytest
import safetensors.numpy

from speechgpt_jax.corpus import hubert_targets as corpus_targets
from speechgpt_jax.corpus.phone_directions import phone_directions, with_context
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import save_audio
from speechgpt_jax.speech.encoder import whisper
from speechgpt_jax.speech.encoder.float16 import to_float16
from speechgpt_jax.speech.encoder.targets import load_targets, save_targets
from tests import flite, local_bucket
from tools import hubert_targets, train_kmeans


def test_directions_separate_phones_and_leave_speakers_out():
    rng = np.random.default_rng(0)
    speaker, phone = rng.standard_normal((2, 6))
    features, phones = [], []
    for _ in range(40):
        names = rng.choice(["a", "b"], 50)
        x = rng.standard_normal() * speaker + np.where(names == "a", 1, -1)[:, None] * phone
        features.append((x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32))
        phones.append([*names])
    projected = phone_directions(features, phones, 1)(np.concatenate(features))[:, 0]
    names = np.concatenate(phones)
    within = [projected[names == name] for name in "ab"]
    # Unit variance within a phone, means of the phones far apart, for both speakers.
    assert 0.7 < np.mean([x.var() for x in within]) < 1.2
    assert abs(within[0].mean() - within[1].mean()) > 4
    assert abs(projected.mean()) < 1e-3
    with pytest.raises(UserError, match=r"--directions=2 is too large; .* at most 1\."):
        phone_directions(features, phones, 2)


def test_context_is_two_frames_before_and_after():
    x = np.arange(4.0)[:, None]
    np.testing.assert_array_equal(with_context(x), [[0, 0, 2], [0, 1, 3], [0, 2, 3], [1, 3, 3]])


def test_targets_are_the_features_of_the_reference(tmp_path):
    tones = np.repeat(np.random.default_rng(0).uniform(300, 3_000, 6), 1_600)
    rows = []
    for name, samples in (("reference", tones), ("slower", np.repeat(tones, 2)), ("other", tones)):
        wav = 0.3 * np.sin(2 * np.pi * np.cumsum(samples) / 16_000)
        save_audio(tmp_path / f"{name}.wav", wav.astype(np.float32))
        rows.append({"path": str(tmp_path / f"{name}.wav")})
    rows = [rows[1] | {"reference": rows[0]["path"]}, rows[2]]
    output = tmp_path / "targets"
    count, hours = corpus_targets.prepare(rows, output, teacher="mfcc", hours=1)
    assert count == 2 and hours == pytest.approx((19_200 + 9_600) / 16_000 / 3600)
    clips, targets = load_targets(output)
    slower, other = sorted(zip(map(len, clips), targets), key=lambda pair: -pair[0])
    # The other recording is that of the reference: its own features are the reference's.
    frames = {row.tobytes() for row in other[1]}
    assert len(slower[1]) == 59 and all(row.tobytes() in frames for row in slower[1])


def test_targets_come_back_as_they_were_saved(tmp_path):
    rng = np.random.default_rng(0)
    wavs = [rng.uniform(-1, 1, n).astype(np.float32) for n in (900, 1_300)]
    features = [rng.standard_normal((n, 3)).astype(np.float16) for n in (2, 3)]
    save_targets(tmp_path, wavs, features)
    clips, targets = load_targets(tmp_path)
    assert [clip.dtype for clip in clips] == [np.int16] * 2
    for wav, clip in zip(wavs, clips):
        np.testing.assert_allclose(clip / 32767, wav, atol=1 / 32767)
    for rows, saved in zip(targets, features):
        np.testing.assert_array_equal(rows, saved)
    np.save(tmp_path / "clip_ends.npy", [900])
    with pytest.raises(UserError, match=r"sound.npy and clip_ends.npy do not belong together"):
        load_targets(tmp_path)
    (tmp_path / "targets.npy").write_bytes(b"no array")
    save_targets(tmp_path / "other", wavs, features)
    (tmp_path / "other" / "targets.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"targets.npy is missing or damaged"):
        load_targets(tmp_path / "other")


def write_g722(path, wav):
    with av.open(str(path), "w", format="g722") as out:
        stream = out.add_stream("g722", rate=16_000, layout="mono")
        pcm = (wav * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)


def test_recordings_of_people_are_added(tmp_path):
    wav = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    for seconds, name in ((1.0, "a"), (0.3, "too_short")):
        write_g722(tmp_path / f"{name}.g722", wav[: int(seconds * 16_000)])
    (clip,) = corpus_targets.load_people(tmp_path)
    with local_bucket.below(tmp_path.parent):
        (same,) = corpus_targets.load_people(f"gs://{tmp_path.name}")
    np.testing.assert_array_equal(same.wav, clip.wav)
    # The codec delays by 22 samples.
    assert np.corrcoef(clip.wav[200:8_000], wav[178:7_978])[0, 1] > 0.999
    (tmp_path / "a.g722").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.g722 holds no samples"):
        corpus_targets.decode_g722(tmp_path / "a.g722")
    with pytest.raises(UserError, match=r"no .g722 file below .*nowhere; unpack"):
        corpus_targets.load_people(tmp_path / "nowhere")


def test_unusable_inputs_are_refused_in_one_line(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"path": "a.wav", "split": "train"}) + "\n")
    command = [f"--manifest={manifest}", f"--output={tmp_path}/targets"]
    for flags, message in (
        (["--hours=nan"], r"--hours: expected a finite number, above 0, got 'nan'"),
        (["--directions=0"], r"--directions: expected a whole number, at least 1, got '0'"),
        (["--teacher=nowhere"], r"--teacher: expected a path that exists, got 'nowhere'"),
        (["--directions=3"], r"a.wav has no speaker, text; expected text, speaker"),
    ):
        with pytest.raises(UserError, match=message):
            hubert_targets.main([*command, *flags])
    manifest.write_text(json.dumps({"path": "a.wav", "split": "test"}) + "\n")
    with pytest.raises(UserError, match="has no rows of split 'train'"):
        hubert_targets.main(command)
    assert not (tmp_path / "targets").exists()


def spoken(folder, speaker="slt", seconds=1.2, **more) -> dict:
    """Row of a recording of one tone for each letter of "banana canal"."""
    text = "banana canal"
    hz = np.repeat([300.0 * 1.3 ** "abcnl ".index(letter) for letter in text], 1_600)
    wav = 0.3 * np.sin(2 * np.pi * np.cumsum(hz) / 16_000)
    path = folder / f"{speaker}-{seconds}.wav"
    save_audio(path, np.resize(wav, round(seconds * 16_000)).astype(np.float32))
    return {"path": str(path), "text": text, "speaker": speaker} | more


def test_targets_are_directions_of_flites_phones(tmp_path, monkeypatch):
    flite.install(tmp_path / "bin", monkeypatch)
    rows = [spoken(tmp_path), spoken(tmp_path, "rms", perturbation=None)]
    # No phones are asked for these, whose speakers flite doesn't have.
    rows += [spoken(tmp_path, "espeak-f1", reference=rows[0]["path"])]
    rows += [spoken(tmp_path, "slt perturbed", perturbation=7)]
    options = {"teacher": "mfcc", "hours": 1}
    count, _ = corpus_targets.prepare(rows, tmp_path / "targets", directions=3, **options)
    _, targets = load_targets(tmp_path / "targets")
    assert count == len(targets) == 4
    assert {x.shape for x in targets} == {(59, 3)}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"speaker": "eve"}, {"directions": 2}, "flite failed for voice 'eve'"),
        ({}, {"directions": 6}, "--directions=6 is too large; .* at most 5"),
        ({"reference": "a.wav"}, {"directions": 2}, "the manifest has none"),
        ({"seconds": 31}, {"teacher": "whisper"}, r"slt-31.wav is longer than 30 s"),
        ({}, {"num_clusters": 100}, "59 feature vectors cannot make 100 clusters"),
    ],
)
def test_mistakes_are_found_before_the_teacher_encodes(
    tmp_path, monkeypatch, changes, options, message
):
    flite.install(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(corpus_targets, "teach_all", None)
    monkeypatch.setattr(whisper, "WhisperFeatures", lambda *blocks: None)
    row = spoken(tmp_path, **changes)
    options = {"teacher": "mfcc", "hours": 1} | options
    with pytest.raises(UserError, match=message):
        corpus_targets.prepare([row], tmp_path / "targets", **options)
    monkeypatch.setenv("PATH", str(tmp_path))
    if "directions" in options and "reference" not in row:
        with pytest.raises(UserError, match="flite is not installed"):
            corpus_targets.prepare([row], tmp_path / "targets", **options)


def test_features_that_float16_does_not_hold_are_refused(tmp_path, small_hubert):
    hubert = shutil.copytree(small_hubert, tmp_path / "hubert")
    (hubert / "kmeans.safetensors").unlink()
    tensors = safetensors.numpy.load_file(hubert / "model.safetensors")
    tensors["layers.0.final_layer_norm.scale"] *= 1e6
    safetensors.numpy.save_file(tensors, hubert / "model.safetensors")
    save_audio(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 8_000).astype("f4"))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"path": "a.wav", "split": "train"}) + "\n")
    message = rf"^{hubert} gives features of up to .*; expected finite ones, at most 65504\."
    with pytest.raises(UserError, match=message):
        hubert_targets.main(
            [f"--manifest={manifest}", f"--output={tmp_path}/targets", f"--teacher={hubert}"]
        )
    fit = [f"--hubert={hubert}", f"--manifest={manifest}", "--num_clusters=2", "--steps=1"]
    for _ in range(2):  # Nothing is kept that a second run would take for features.
        with pytest.raises(UserError, match=message):
            train_kmeans.main(fit)
    assert not [*tmp_path.rglob("*.npy")]
    with pytest.raises(UserError, match=r"of up to nan; expected finite ones"):
        to_float16(np.array([[0, np.nan]], np.float32), hubert)
