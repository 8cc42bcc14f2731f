"""What eval_units reports, against scikit-learn and plain counting."""

import collections
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
import soundfile
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import units
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, save_hubert
from tests import flite
from tools import eval_units

NUM_UNITS = 12


def random_frames(rng, num_clips: int, kinds: int) -> list[np.ndarray]:
    return [np.repeat(rng.integers(kinds, size=20), 2) for _ in range(num_clips)]


def expected_pnmi(ids, phones) -> float:
    from sklearn.metrics import mutual_info_score

    return mutual_info_score(ids, phones) / mutual_info_score(phones, phones)


def expected_accuracy(fit_ids, fit_phones, ids, phones) -> float:
    counts = collections.defaultdict(collections.Counter)
    for unit, phone in zip(fit_ids, fit_phones):
        counts[unit][phone] += 1
    best = {unit: max(seen, key=lambda p: (seen[p], -p)) for unit, seen in counts.items()}
    return np.mean([best.get(unit) == phone for unit, phone in zip(ids, phones)])


def expected_rate(clips) -> float:
    runs = sum(len([*itertools.groupby(clip)]) for clip in clips)
    return runs / (sum(map(len, clips)) * 0.02)


def test_scores_are_those_of_scikit_learn_and_of_counting():
    rng = np.random.default_rng(0)
    phones = {group: random_frames(rng, 6, 5) for group in units.GROUPS}
    # Units follow the phones, with errors, and one of them occurs in no training clip.
    found = {
        group: [np.where(rng.random(len(p)) < 0.3, rng.integers(8, size=len(p)), p) for p in clips]
        for group, clips in phones.items()
    }
    found["human"][0][:] = 9
    score = units.score(found, phones, num_units=10)
    fit, seen = (np.concatenate(found[group]) for group in (units.FIT, units.SEEN))
    fit_phones, seen_phones = (np.concatenate(phones[group]) for group in (units.FIT, units.SEEN))
    assert score.pnmi == pytest.approx(expected_pnmi(seen, seen_phones))
    assert 0.2 < score.pnmi < 0.9
    assert score.units_per_second == pytest.approx(expected_rate(found[units.SEEN]))
    assert list(score.accuracy) == [units.SEEN, "unseen voice", "human"]
    for group, accuracy in score.accuracy.items():
        args = fit, fit_phones, np.concatenate(found[group]), np.concatenate(phones[group])
        assert accuracy == pytest.approx(expected_accuracy(*args))
    assert score.accuracy["human"] < score.accuracy["unseen voice"]


@pytest.mark.parametrize(
    ("ids", "phones", "expected"),
    [
        ([0, 1, 2, 3], [0, 0, 1, 1], 1.0),  # Units say all.
        ([0, 0, 0, 0], [0, 1, 2, 0], 0.0),  # One unit says nothing.
        ([0, 1, 0, 1], [0, 0, 1, 1], 0.0),  # Independent.
    ],
)
def test_pnmi_at_its_ends(ids, phones, expected):
    assert units.pnmi(np.array(ids), np.array(phones)) == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def hubert(tmp_path):
    folder = tmp_path / "hubert"
    config = HubertConfig(
        conv_dim=(8,) * 7,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        position_kernel=8,
        position_groups=4,
        feature_layer=1,
    )
    save_hubert(folder, Hubert(config, rngs=nnx.Rngs(0)))
    noise = np.random.default_rng(0).standard_normal((8, 16_000)).astype(np.float32) * 0.1
    features = np.concatenate(
        Speech2Unit(Hubert(config, rngs=nnx.Rngs(0)), None).features([*noise])
    )
    centroids = np.random.default_rng(1).choice(features, NUM_UNITS, replace=False)
    safetensors.numpy.save_file({"cluster_centers": centroids}, folder / "kmeans.safetensors")
    return folder


def write_corpus(folder) -> dict[str, list[dict]]:
    """Recordings of tones, a tone per letter, of three splits, and a shipped human recording."""
    rng, rows = np.random.default_rng(2), []
    tones = {letter: 200.0 * 1.6**i for i, letter in enumerate("aeiou")}
    for split, speaker, count in (
        ("train", "slt", 6),
        ("test", "slt", 3),
        ("unheard_voice", "awb", 2),
    ):
        for i in range(count):
            text = "".join(rng.choice([*tones], 12))
            time = np.arange(1_600) / 16_000
            wav = np.concatenate([np.sin(2 * np.pi * tones[letter] * time) for letter in text])
            wav = 0.3 * wav + 0.02 * rng.standard_normal(len(wav))
            soundfile.write(folder / f"{split}{i}.wav", wav, 16_000)
            rows.append(
                {"path": f"{split}{i}.wav", "text": text, "speaker": speaker, "split": split}
            )
    shipped = ASSETS / "corpus" / "clips"
    human = next(
        c for c in json.loads((shipped / "clips.json").read_text()) if c["speaker"] == "human"
    )
    path = str(shipped / human["file"])
    rows.append({"path": path, "text": human["text"], "speaker": "human", "split": "human"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: [r for r in rows if r["split"] == split] for split in units.GROUPS.values()}


@pytest.mark.slow
def test_the_command_prints_what_an_independent_count_gives(hubert, tmp_path, monkeypatch, capsys):
    rows = write_corpus(tmp_path)
    flite.install(tmp_path / "bin", monkeypatch)
    eval_units.main([f"--manifest={tmp_path}/manifest.jsonl", f"--hubert={hubert}", "--clips=5"])
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{NUM_UNITS} units" in line for line in lines)
    printed = next(line for line in lines if "HuBERT" in line)
    name, *values = [cell.strip() for cell in printed.strip("│").split("│")]
    assert name == "HuBERT" and len(values) == 5

    # The command draws five of the six training clips.
    chosen = units.choose_rows([row for group in rows.values() for row in group], 5)
    speech2unit = Speech2Unit.from_pretrained(hubert)
    ids, phones = {}, {}
    for group in (units.FIT, units.SEEN, "unseen voice"):
        wavs = [soundfile.read(tmp_path / row["path"], dtype="float32")[0] for row in chosen[group]]
        ids[group] = [speech2unit.cluster_ids([wav])[0] for wav in wavs]
        centres = 0.0125 + 0.02 * np.arange(59)
        texts = [
            np.array(["aeiou".index(letter) for letter in row["text"]]) for row in chosen[group]
        ]
        phones[group] = np.concatenate([text[np.int64(centres / 0.1)] for text in texts])
    flat = {group: np.concatenate(clips) for group, clips in ids.items()}
    assert len(np.unique(flat[units.SEEN])) > 3  # The numbers below are no matter of course.
    expected = [
        expected_pnmi(flat[units.SEEN], phones[units.SEEN]),
        expected_rate(ids[units.SEEN]),
        *(
            expected_accuracy(flat[units.FIT], phones[units.FIT], flat[group], phones[group])
            for group in (units.SEEN, "unseen voice")
        ),
    ]
    # Half of the last printed digit.
    rounding = np.array([5e-4, 5e-2, 5e-4, 5e-4]) + 1e-9
    assert (np.abs(np.float64(values[:4]) - expected) <= rounding).all(), (values, expected)
    # The human's phones are of another alphabet than the letters: no unit stands for one.
    assert values[4] == "0.000"


def test_a_manifest_without_clips_to_measure_on_is_one_clear_line(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "split": "train"}\n')
    with pytest.raises(UserError, match="no rows of split 'test'"):
        eval_units.main([f"--manifest={tmp_path}/m.jsonl"])
    (tmp_path / "n.jsonl").write_text(
        '{"path": "a.wav", "split": "train"}\n{"path": "a.wav", "split": "test"}\n'
    )
    with pytest.raises(UserError, match=r"a.wav has no speaker, text; expected"):
        eval_units.main([f"--manifest={tmp_path}/n.jsonl"])
    with pytest.raises(UserError, match=r"--manifest: .*nowhere.jsonl"):
        eval_units.main([f"--manifest={tmp_path}/nowhere.jsonl"])
    with pytest.raises(UserError, match="--clips: expected a whole number, at least 1, got '0'"):
        eval_units.main([f"--manifest={tmp_path}/m.jsonl", "--clips=0"])


def test_a_missing_recording_is_named_before_phones_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "flite_phones", None)
    (tmp_path / "a.wav").touch()
    row = {"text": "a", "speaker": "slt"}
    rows = {units.FIT: [row | {"path": f"{tmp_path}/a.wav"}], units.SEEN: [row | {"path": "b.wav"}]}
    with pytest.raises(UserError, match=r"b.wav of the manifest isn't there"):
        units.load_labelled(rows)


def test_phones_are_not_those_of_perturbed_recordings():
    rows = [
        {"path": f"{i}.wav", "text": "a", "speaker": "slt", "split": split, "perturbation": seed}
        for i, (split, seed) in enumerate([("train", None), ("train", 7), ("test", None)])
    ]
    chosen = units.choose_rows(rows, 9)
    assert {group: [row["path"] for row in group_rows] for group, group_rows in chosen.items()} == {
        units.FIT: ["0.wav"],
        units.SEEN: ["2.wav"],
    }
