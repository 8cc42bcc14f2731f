"""Voice activity in real recordings between silence and noise."""

import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.serving.vad import Change, VoiceActivity, speech_bounds
from speechgpt_jax.speech.audio import load_audio
from tests.serving.clips import QUESTION

RATE = 16_000


@pytest.fixture(scope="module")
def speech():
    wav = load_audio(QUESTION)
    start, end = speech_bounds(wav)
    return wav[int(start * RATE) : int(end * RATE)]


def noise(seconds, level=1e-3):
    return (level * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(
        np.float32
    )


def found(wav, size=480, **options):
    vad = VoiceActivity(**options)
    pieces = [wav[start : start + size] for start in range(0, len(wav), size)]
    return [change for piece in pieces for change in vad.add(piece)]


@pytest.mark.parametrize("level", [0.0, 1e-3, 4e-3])
@pytest.mark.parametrize("size", [100, 480, 48_000])
def test_speech_is_found_in_silence_and_noise(speech, level, size):
    wav = np.concatenate([noise(1), speech, noise(1)]) * 0.999
    wav += noise(len(wav) / RATE, level)[: len(wav)]
    start, end = found(wav, size)
    assert start.is_start and not end.is_start
    assert start.sample / RATE == pytest.approx(1, abs=0.25)
    # The end is found after half a second of silence.
    assert end.sample / RATE == pytest.approx(1.5 + len(speech) / RATE, abs=0.3)


def test_silence_noise_and_clicks_are_no_speech():
    click = np.zeros(RATE, np.float32)
    click[5000:5400] = 0.9
    assert found(np.zeros(3 * RATE, np.float32)) == []
    assert found(noise(3, 0.01)) == []
    assert found(np.concatenate([noise(1), click, noise(1)])) == []


def test_a_pause_ends_speech_only_if_it_is_long(speech):
    wav = np.concatenate([noise(1), speech, noise(0.3), speech, noise(1.5)])
    assert [change.is_start for change in found(wav)] == [True, False]
    assert [change.is_start for change in found(wav, silence_seconds=0.2)].count(True) >= 2


def test_changes_do_not_depend_on_the_pieces(speech):
    wav = np.concatenate([noise(0.5), speech, noise(1)])
    assert found(wav, 7) == found(wav, 10**6)
    assert all(isinstance(change, Change) for change in found(wav))


def test_bounds_of_speech(speech):
    wav = np.concatenate([np.zeros(RATE, np.float32), speech, np.zeros(RATE, np.float32)])
    start, end = speech_bounds(wav)
    assert start == pytest.approx(1, abs=0.1)
    assert end == pytest.approx(1 + len(speech) / RATE, abs=0.1)
    assert speech_bounds(np.zeros(100, np.float32)) == (0.0, 0.006)
    assert speech_bounds(np.zeros(RATE, np.float32)) == (0.0, 1.0)


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"silence_seconds": 0}])
def test_illegal_settings(options):
    with pytest.raises(UserError, match=next(iter(options))):
        VoiceActivity(**options)
