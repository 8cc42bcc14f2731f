"""Synthesis and encoding of the demo world with a small speech command and a tiny HuBERT."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf

from speechgpt_jax.corpus import many_voices
from speechgpt_jax.demo_world import build
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.demo_world.clips import (
    ANSWER_VOICE,
    SPLITS,
    TRAIN_VOICES,
    Clip,
    planned_clips,
    read_clips,
    write_clips,
)
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tools import build_demo_corpus

NUM_UNITS = 200


@pytest.fixture(scope="module")
def hubert(small_hubert):
    return Speech2Unit.from_pretrained(small_hubert)


def read(path):
    """The examples of one file: feature name -> list of str, or int array."""
    for record in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        yield {
            name: value.bytes_list.value[0].decode()
            if value.HasField("bytes_list")
            else np.array(value.int64_list.value)
            for name, value in features.items()
        }


@pytest.mark.slow
def test_a_failing_command_is_named(tmp_path):
    clip = planned_clips()[0]
    with pytest.raises(ValueError, match=r"nothing\.py.* failed .*check the command"):
        build.synthesize_clip(clip, f"{sys.executable} nothing.py {{text}} {{wav}}", tmp_path)
    with pytest.raises(ValueError, match=r"no-such-voice .*check the command"):
        build.synthesize_clip(clip, "no-such-voice {text} {wav}", tmp_path)


def test_a_wrong_sample_rate_is_named(tmp_path, voice):
    clip = planned_clips()[0]
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / clip.path, np.zeros(8000), 8000)
    with pytest.raises(ValueError, match="has 8000 Hz and 1 channels"):
        build.synthesize_clip(clip, voice, tmp_path)


def small_corpus(folder: Path, voice: str) -> list[Clip]:
    """Two questions, their answers and two plain sentences of every split that has them."""
    planned = planned_clips()
    clips = []
    for split in SPLITS:
        for kind in ("question", "plain"):
            clips += [c for c in planned if (c.split, c.kind) == (split, kind)][:2]
    answers = {c.answer_id for c in clips}
    clips += [c for c in planned if c.id in answers]
    (folder / "wavs").mkdir()
    return [build.synthesize_clip(clip, voice, folder) for clip in clips]


@pytest.mark.slow
def test_encode_writes_the_units_of_every_clip(tmp_path, voice, hubert):
    clips = small_corpus(tmp_path, voice)
    write_clips(clips, tmp_path / "manifest.jsonl")
    assert read_clips(tmp_path / "manifest.jsonl") == clips
    build.encode(tmp_path, hubert, tmp_path / "out")

    utterances = list(read(tmp_path / "out" / "utterances-train.tfrecord.gz"))
    assert {u["id"] for u in utterances} == {c.id for c in clips if c.split == "train"}
    for u in utterances[:2]:
        wav = audio.load_audio(tmp_path / "wavs" / f"{u['id']}.wav")
        units, durations = hubert(wav)
        np.testing.assert_array_equal(u["units"], units)
        np.testing.assert_array_equal(u["durations"], durations)
        assert u["durations"].sum() == hubert.hubert.config.num_frames(len(wav))

    spoken = {u["id"]: u for u in utterances}
    for d in read(tmp_path / "out" / "dialogues-train.tfrecord.gz"):
        np.testing.assert_array_equal(d["question_units"], spoken[d["id"]]["units"])
        answer = next(u for u in utterances if u["text"] == d["answer"])
        np.testing.assert_array_equal(d["answer_units"], answer["units"])
        assert d["answer_speaker"] == ANSWER_VOICE

    rows = json.loads((tmp_path / "out" / "clips" / "clips.json").read_text())
    assert {row["kind"] for row in rows} == {"question", "plain"}
    for row in rows:
        wav = audio.load_audio(tmp_path / "out" / "clips" / row["file"])
        original = audio.load_audio(tmp_path / "wavs" / row["file"].replace("flac", "wav"))
        np.testing.assert_array_equal(wav, original)


def voices_folder(folder: Path, text: str, voice: str) -> Path:
    """A folder as tools.record_voices writes it, with one recording of the text."""
    recordings = [many_voices.Recording("other", text, "espeak-f1", "f1", voice)]
    many_voices.record(recordings, folder, None, 1)
    return folder


@pytest.mark.slow
def test_recordings_of_other_voices_are_for_training_only(tmp_path, voice, hubert):
    clips = small_corpus(tmp_path, voice)
    write_clips(clips, tmp_path / "manifest.jsonl")
    voices = voices_folder(tmp_path / "voices", "seven green feet.", voice)
    build.encode(tmp_path, hubert, tmp_path / "out", voices)
    utterances = {u["id"]: u for u in read(tmp_path / "out" / "utterances-train.tfrecord.gz")}
    assert set(utterances) == {c.id for c in clips if c.split == "train"} | {"other.wav"}
    other = utterances["other.wav"]
    assert (other["text"], other["speaker"]) == ("seven green feet.", "espeak-f1")
    assert other["topic"] == demo_world.FREE_ORDER
    units, _ = hubert(audio.load_audio(voices / "other.wav"))
    np.testing.assert_array_equal(other["units"], units)
    # A vocoder is not trained on them.
    assert len((tmp_path / "units.jsonl").read_text().splitlines()) == len(clips)


def test_quotations_are_not_in_free_order(tmp_path, voice):
    texts = ["seven green feet.", "she sang a psalm"]
    recordings = [many_voices.Recording(f"r{i}", t, "f1", "f1", voice) for i, t in enumerate(texts)]
    many_voices.record(recordings, tmp_path, None, 1)
    topics = [clip.topic for clip in build.voices_clips(tmp_path)]
    assert topics == [demo_world.FREE_ORDER, build.QUOTATIONS]


def test_recordings_of_other_voices_must_not_teach_the_test(tmp_path, voice, hubert):
    clips = [c for c in planned_clips() if c.split == "test"][:1]
    write_clips(clips, tmp_path / "manifest.jsonl")
    voices = voices_folder(tmp_path / "voices", clips[0].text, voice)
    with pytest.raises(ValueError, match="test data would be in the training data"):
        build.encode(tmp_path, hubert, tmp_path / "out", voices)


def test_other_sentences_need_another_folder(tmp_path):
    settings = {"tts": "say {speaker} {text} {wav}", "more_sentences": 0, "short_sentences": 5}
    settings |= {"answer_voice_sentences": 0}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="begun with more_sentences 0, now it is 3"):
        build.synthesize(tmp_path, f"{sys.executable} {{speaker}} {{text}} {{wav}}", None, 1, 3, 5)


def test_a_manifest_of_no_earlier_run_is_not_replaced(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl exists and is not of an earlier run"):
        build.synthesize(tmp_path, f"{sys.executable} {{speaker}} {{text}} {{wav}}", None, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize(
    ("name", "text"), [("a.flac", ""), ("clips.json", "{}"), ("clips.json", '["a.flac"]')]
)
def test_clips_of_no_earlier_run_are_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is not of an earlier run; name another folder"):
        build.copy_clips([], tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_clips_of_an_earlier_run_are_replaced(tmp_path):
    clip = next(c for c in planned_clips() if (c.split, c.kind) == ("test", "plain"))
    audio.save_audio(tmp_path / "other.wav", np.zeros(800, np.float32))
    clip = dataclasses.replace(clip, path="other.wav", seconds=0.05)
    build.copy_clips([clip], tmp_path, tmp_path / "clips")
    (tmp_path / "clips" / f"{clip.id}.flac").rename(tmp_path / "clips" / "old.flac")
    rows = (tmp_path / "clips" / "clips.json").read_text().replace(clip.id, "old")
    (tmp_path / "clips" / "clips.json").write_text(rows)
    build.copy_clips([clip], tmp_path, tmp_path / "clips")
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {
        "clips.json",
        f"{clip.id}.flac",
    }


@pytest.mark.parametrize("kind", ["more", "short", "answer_voice"])
def test_too_many_sentences_are_refused(tmp_path, kind):
    message = "expected a whole number, at least 0 and at most 1000000, got '1000000000'"
    with pytest.raises(UserError, match=f"--{kind}_sentences: {message}"):
        build_demo_corpus.main(
            ["synthesize", f"--work_dir={tmp_path}", f"--{kind}_sentences=1000000000"]
        )
    assert not list(tmp_path.iterdir())


def test_a_missing_recording_is_named_before_the_work(tmp_path, hubert):
    clips = [clip for clip in planned_clips() if clip.kind == "plain"][:2]
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / clips[0].path, np.zeros(16_000), 16_000)
    write_clips(clips, tmp_path / "manifest.jsonl")
    with pytest.raises(UserError, match=f"{clips[1].path} of the manifest isn't there"):
        build.encode(tmp_path, hubert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, "split 'validation' is none of train"),
        ({"seconds": "x"}, "seconds 'x' is no number"),
        ({"kind": "question", "answer_id": "zz"}, "has the answer 'zz', which isn't there"),
        ({"colour": "red"}, "not a clip"),
    ],
)
def test_malformed_rows_of_a_manifest(tmp_path, hubert, changes, message):
    row = dataclasses.asdict(planned_clips()[0]) | changes
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        build.encode(tmp_path, hubert, tmp_path / "out")


def test_recordings_of_the_same_name(tmp_path, voice, hubert):
    write_clips(planned_clips()[:1], tmp_path / "manifest.jsonl")
    voices = voices_folder(tmp_path / "voices", "seven green feet.", voice)
    row = (voices / many_voices.MANIFEST).read_text()
    (voices / many_voices.MANIFEST).write_text(row + row)
    with pytest.raises(UserError, match="two recordings have the same name"):
        build.encode(tmp_path, hubert, tmp_path / "out", voices)
    (voices / many_voices.MANIFEST).write_text("")
    with pytest.raises(UserError, match="has no rows"):
        build.encode(tmp_path, hubert, tmp_path / "out", voices)


def test_an_empty_manifest_writes_no_records(tmp_path, hubert):
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(UserError, match=r"manifest\.jsonl has no rows"):
        build.encode(tmp_path, hubert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encode_without_a_manifest_says_what_to_run(tmp_path, hubert):
    with pytest.raises(ValueError, match="run the step `synthesize`"):
        build.encode(tmp_path, hubert, tmp_path / "out")


# ---- the shipped corpus ------------------------------------------------------------------------

SHIPPED = Path(build.SHIPPED_CORPUS)
UTTERANCES = [f"utterances-{split}" for split in SPLITS]
DIALOGUES = [f"dialogues-{split}" for split in SPLITS[:-1]]


def check_units(units, durations):
    assert len(units) == len(durations) > 0
    assert units.min() >= 0 and units.max() < NUM_UNITS
    assert (np.diff(units) != 0).all()
    assert durations.min() >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", UTTERANCES)
def test_shipped_utterances(name):
    speakers = set()
    for u in read(SHIPPED / f"{name}.tfrecord.gz"):
        check_units(u["units"], u["durations"])
        speakers.add(u["speaker"])
        if u["kind"] != "prompt":
            assert set(demo_world.words(u["text"])) <= set(demo_world.vocabulary())
    strangers = {"utterances-unheard_voice": {"awb"}, "utterances-human": {"human"}}
    assert speakers == strangers.get(name, set(TRAIN_VOICES))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALOGUES)
def test_shipped_dialogues(name):
    answers = {d.question: d.answer for d in demo_world.questions() if d.split in name} or {
        d.question: d.answer for d in demo_world.questions() if d.split == "test"
    }
    asked = set()
    for d in read(SHIPPED / f"{name}.tfrecord.gz"):
        check_units(d["question_units"], d["question_durations"])
        check_units(d["answer_units"], d["answer_durations"])
        assert answers[d["question"]] == d["answer"]
        asked.add(d["question"])
    assert asked == set(answers)


def test_shipped_files_are_small_and_attributed():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    rows = json.loads((SHIPPED / "clips" / "clips.json").read_text())
    assert {row["file"] for row in rows} == {p.name for p in SHIPPED.glob("clips/*.flac")}
    assert sum(row["speaker"] == "human" for row in rows) == 15
    attribution = (SHIPPED / "ATTRIBUTION.md").read_text()
    assert "Allison Smith" in attribution and "Carnegie Mellon" in attribution
