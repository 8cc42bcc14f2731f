"""Recordings of many voices are planned at random, made once, and name their references."""

import numpy as np
import pytest

from speechgpt_jax.corpus import many_voices, wordnet
from speechgpt_jax.corpus.many_voices import Recording, draw_mixture, plan, record
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.speech.audio import load_audio
from tools import record_voices

TEXTS = [["what is two plus two?"], ["a change of voice", "the house was empty"]]
KOKORO = ("jf_alpha", "jf_nezumi", "jm_kumo")


def test_a_plan_has_the_numbers_that_were_asked_for():
    counts = {"plain": 40, "pitched": 6, "espeak": 5, "kokoro": 4}
    recordings = plan(TEXTS, **counts, kokoro_voices=KOKORO)
    assert recordings == plan(TEXTS, **counts, kokoro_voices=KOKORO)
    assert len({recording.name for recording in recordings}) == len(recordings) == 55 + 6 + 5 + 4
    by_name = {recording.name: recording for recording in recordings}
    # Half of the texts come from either group.
    plain = [recording for recording in recordings if recording.name.startswith("plain")]
    assert 10 <= sum(recording.text == TEXTS[0][0] for recording in plain) <= 30
    for recording in recordings:
        if recording.reference:
            reference = by_name[recording.reference]
            assert (reference.text, reference.reference) == (recording.text, None)
            if recording.speaker.endswith("-pitched"):
                assert recording.speaker == f"{reference.speaker}-pitched"
            else:
                assert reference.speaker == "slt"


def test_one_voice_of_kokoro_speaks_at_its_own_speed():
    counts = {"plain": 0, "pitched": 0, "espeak": 0, "kokoro": 3}
    recordings = plan(TEXTS, **counts, kokoro_voices=KOKORO, kokoro_voice="jm_kumo")
    spoken = [recording for recording in recordings if recording.reference]
    assert {(r.speaker, str(r.voice), r.speed) for r in spoken} == {
        ("jm_kumo", "{'jm_kumo': 1.0}", 1.0)
    }
    assert [r.speaker for r in recordings].count("slt") == len(spoken) == 3


def test_the_name_of_a_recording_stands_for_what_it_is_made_of():
    counts = {"plain": 3, "pitched": 2, "espeak": 2, "kokoro": 2, "kokoro_voices": KOKORO}
    first, other = (plan(TEXTS, **counts, seed=seed) for seed in (0, 1))
    by_name = {recording.name: recording for recording in first}
    assert all(by_name.get(r.name, r) == r for r in other)
    assert len(by_name.keys() | {r.name for r in other}) > len(first)


def test_plans_that_cannot_be_made():
    with pytest.raises(UserError, match="no recording is wanted"):
        plan(TEXTS, plain=0, pitched=0, espeak=0, kokoro=0)
    with pytest.raises(UserError, match="no voice 'nobody'; it has jf_alpha"):
        plan(
            TEXTS,
            plain=1,
            pitched=0,
            espeak=0,
            kokoro=0,
            kokoro_voices=KOKORO,
            kokoro_voice="nobody",
        )


def test_mixtures_keep_the_size_of_a_style():
    rng = np.random.default_rng(0)
    mixtures = [draw_mixture(KOKORO, rng) for _ in range(200)]
    for weights in mixtures:
        assert sorted(weights) == sorted(KOKORO)
        assert sum(weights.values()) == pytest.approx(1, abs=0.002)
        assert sorted(weights.values())[1] >= -0.25
    assert min(min(weights.values()) for weights in mixtures) < 0


def test_wordnet_gives_its_quoted_sentences(tmp_path):
    line = (
        '00001 03 n 01 able 0 000 | skilled; "she is able to see it"; "too short"; "x < y is so"\n'
    )
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(line)
    assert wordnet.quoted_sentences(tmp_path) == ["she is able to see it"]
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("00001 03 n 01 able 0 000 | skilled\n")
    with pytest.raises(UserError, match="quote no sentence"):
        wordnet.quoted_sentences(tmp_path)
    (tmp_path / "data.adv").unlink()
    with pytest.raises(UserError, match=r"data.adv can't be read .* expected a file of WordNet"):
        wordnet.quoted_sentences(tmp_path)


def test_recordings_are_made_once_and_name_their_references(voice, tmp_path):
    spoken = []

    def kokoro(text, weights, speed):
        spoken.append((text, weights, speed))
        return 2 * np.ones(3_200, np.float32)

    ref, other, mixed, plain = (
        f"{kind}-0000{i}-01234567" for i, kind in enumerate(["ref", "espeak", "kokoro", "plain"])
    )
    recordings = [
        Recording(ref, "two plus two", "slt", "slt", voice),
        Recording(other, "two plus two", "espeak-f1", "f1", voice, reference=ref),
        Recording(mixed, "two plus two", "kokoro", {"jm_kumo": 1.0}, None, 1.2, ref),
        Recording(plain, "good morning", "rms", "rms", voice),
    ]
    rows = record(recordings, tmp_path, kokoro, 2)
    assert [(row["speaker"], row.get("reference")) for row in rows] == [
        ("espeak-f1", f"{ref}.wav"),
        ("kokoro", f"{ref}.wav"),
        ("rms", None),
    ]
    assert rows == record(recordings, tmp_path, kokoro, 2)
    assert spoken == [("two plus two", {"jm_kumo": 1.0}, 1.2)]
    (tmp_path / f"{mixed}.wav").unlink()
    record(recordings, tmp_path, kokoro, 2)
    assert len(spoken) == 2

    read = read_manifest(tmp_path / many_voices.MANIFEST, "train")
    assert load_audio(read[1]["reference"]).shape == (3 * 4_000,)
    assert load_audio(read[1]["path"]).max() == pytest.approx(1, abs=1e-3)


def test_a_manifest_of_other_recordings_is_not_replaced(voice, tmp_path):
    manifest = tmp_path / many_voices.MANIFEST
    row = '{"path": "mine.wav", "text": "a", "speaker": "me"}\n'
    manifest.write_text(row)
    with pytest.raises(UserError, match=r"manifest\.jsonl exists and is not of an earlier run"):
        record([Recording("plain-00000-01234567", "a", "rms", "rms", voice)], tmp_path, None, 1)
    assert manifest.read_text() == row and len(list(tmp_path.iterdir())) == 1


def test_a_missing_program_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (recording,) = plan(TEXTS, plain=1, pitched=0, espeak=0, kokoro=0)
    with pytest.raises(UserError, match="'flite' is not installed"):
        record([recording], tmp_path / "out", None, 1)


@pytest.mark.parametrize("flag", ["--kokoro_clips=3", "--kokoro_voice=jm_kumo"])
def test_flags_of_kokoro_need_its_folder(tmp_path, flag):
    with pytest.raises(UserError, match="need --kokoro, the folder of its model"):
        record_voices.main([f"--output={tmp_path}/voices", flag])
    assert not (tmp_path / "voices").exists()


@pytest.mark.parametrize("kind", ["plain_clips", "kokoro_clips", "more_sentences"])
def test_too_many_recordings_are_refused(tmp_path, kind):
    message = f"{kind}: expected a whole number, at least 0 and at most 1000000, got '1000000000'"
    with pytest.raises(UserError, match=message):
        record_voices.main([f"--output={tmp_path}/voices", f"--{kind}=1000000000"])
