"""The plan of the corpus: every text is spoken, and no text of the test is trained on."""

import pytest

from speechgpt_jax.demo_world import world
from speechgpt_jax.demo_world.clips import ANSWER_VOICE, TRAIN_VOICES, planned_clips


def test_plan_keeps_voices_apart():
    clips = planned_clips()
    assert len({clip.id for clip in clips}) == len(clips)
    voices = {split: {c.speaker for c in clips if c.split == split} for split in ("train", "test")}
    assert voices["train"] == voices["test"] == set(TRAIN_VOICES)
    assert {c.speaker for c in clips if c.split == "unheard_voice"} == {"awb"}
    assert {c.speaker for c in clips if c.kind == "answer"} == {ANSWER_VOICE}


def test_further_sentences_leave_the_other_clips_as_they_are():
    clips = planned_clips(more_sentences=3, short_sentences=2, answer_voice_sentences=4)
    fewer = planned_clips(more_sentences=3, short_sentences=2)
    assert clips[: len(fewer)] == fewer
    assert [(c.speaker, c.split, c.topic, c.perturbation) for c in clips[len(fewer) :]] == [
        (ANSWER_VOICE, "train", world.FREE_ORDER, None)
    ] * 4
    perturbed, short = fewer[-5:-2], fewer[-2:]
    assert all(c.perturbation is None and c.speaker == c.voice for c in short)
    # What chooses the clips of a speaker must not get these.
    assert all(c.perturbation and c.speaker == f"{c.voice} perturbed" for c in perturbed)
    assert {c.voice for c in perturbed} <= set(TRAIN_VOICES)


@pytest.mark.slow
def test_plan_has_every_text_and_no_test_text_in_training():
    clips = planned_clips()
    assert {c.text for c in clips} == {s.text for s in world.all_sentences()}
    train = {c.text for c in clips if c.split == "train"}
    assert not train & {c.text for c in clips if c.split != "train"}
