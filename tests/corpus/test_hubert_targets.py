"""What ears are taught: directions of features that tell phones apart, whoever speaks."""

import numpy as np

from speechgpt_jax.speech.phones import frame_phones
from tools import hubert_targets
from tools.hubert_targets import Clip, phone_directions, with_context


def test_directions_tell_phones_and_leave_speakers_out():
    rng = np.random.default_rng(0)
    speaker, phone = rng.standard_normal((2, 6))
    features, phones = [], []
    for _ in range(40):
        names = rng.choice(["a", "b"], 50)
        x = rng.standard_normal() * speaker + np.where(names == "a", 1, -1)[:, None] * phone
        features.append((x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32))
        phones.append([*names])
    told = phone_directions(features, phones, 1)(np.concatenate(features))[:, 0]
    names = np.concatenate(phones)
    within = [told[names == name] for name in "ab"]
    # Of unit variance within a phone, its mean far from the other's, whoever speaks.
    assert 0.7 < np.mean([x.var() for x in within]) < 1.2
    assert abs(within[0].mean() - within[1].mean()) > 4
    assert abs(told.mean()) < 1e-3


def test_context_is_what_was_two_frames_before_and_after():
    x = np.arange(4.0)[:, None]
    np.testing.assert_array_equal(with_context(x), [[0, 0, 2], [0, 1, 3], [0, 2, 3], [1, 3, 3]])


def test_phones_are_as_much_longer_as_the_sound(monkeypatch):
    said = [("a", 0.1), ("b", 0.2)]
    monkeypatch.setattr(hubert_targets, "flite_phones", lambda text, voice: said)
    clip = Clip(np.zeros(0), {"text": "ab", "speaker": "slt"}, stretch=2.0)
    assert clip.phones(20) == ["a"] * 10 + ["b"] * 10 != frame_phones(said, 20)
