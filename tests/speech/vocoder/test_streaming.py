"""The chunks of a stream together are the samples of synthesis in one call."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.streaming import sliding, stream
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from tests.speech.random_vocoder import build

pytestmark = pytest.mark.slow

PLAIN = VocoderConfig(
    num_embeddings=20,
    embedding_dim=8,
    speakers=("ann", "bob"),
    duration_embed_dim=16,
    upsample_rates=(20, 16),
    upsample_kernel_sizes=(40, 32),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
    duration_hidden_dim=8,
)
PULSES = dataclasses.replace(
    PLAIN,
    upsample_rates=(2, 2),
    upsample_kernel_sizes=(4, 4),
    istft_n_fft=320,
    istft_hop_size=80,
    pitch_hidden_dim=8,
)
SETTINGS = {"speaker": "bob", "duration_scale": 1.3}


@pytest.fixture(scope="module", params=[PLAIN, PULSES], ids=["plain", "pulses"])
def vocoder(request):
    vocoder = build(request.param)
    vocoder.duration_predictor.proj.bias[...] += 1.0
    return vocoder


def cut(values, sizes):
    return np.split(values, np.cumsum(sizes))


def test_chunks_are_the_samples_of_the_whole(vocoder):
    units = np.random.default_rng(1).integers(20, size=90)
    pieces = cut(units, [1, 1, 40, 0, 3, 20])
    chunks = list(stream(vocoder, pieces, lookahead=None, **SETTINGS))
    whole = vocoder(units, **SETTINGS)
    assert len(chunks) > 4 and whole.std() > 1e-3
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-3 * np.abs(whole).max())


@pytest.mark.parametrize("lookahead", [0, 3, 8, None])
def test_chunks_have_the_length_of_the_whole(vocoder, lookahead):
    units = np.random.default_rng(1).integers(20, size=60)
    pieces = cut(units, [1, 1, 20, 0, 3])
    durations, length = [], 0
    options = {"lookahead": lookahead, "on_durations": durations.extend, **SETTINGS}
    for chunk in stream(vocoder, pieces, **options):
        length += len(chunk)
        # Of a unit whose sound has begun the duration is known.
        assert length <= 320 * sum(durations)
    assert length == len(vocoder(units, **SETTINGS)) == 320 * sum(durations)
    (whole,) = vocoder.predict_durations([units], np.array([1]), SETTINGS["duration_scale"])
    assert durations == whole.tolist()


@pytest.fixture(scope="module")
def recording():
    """Units of a recording."""
    clips = ASSETS / "corpus" / "clips"
    return Speech2Unit.from_pretrained()(load_audio(next(clips.glob("question-*-slt.flac"))))[0]


def test_the_shipped_vocoder_begins_after_0_3_seconds_and_never_pauses(recording):
    """At the arrival of each chunk the sound of the chunks before it is still playing, though units
    come only as fast as their sound."""
    vocoder = UnitVocoder.from_pretrained()
    durations = vocoder.predict_durations([np.asarray(recording)], np.array([0]))[0]
    taken = []
    pieces = (taken.append(unit) or [unit] for unit in recording)
    chunks, arrivals = [], []
    for chunk in stream(vocoder, pieces, speaker="slt"):
        chunks.append(chunk)
        arrivals.append(durations[: len(taken)].sum())  # In codes.
        if len(chunks) == 1:
            # As predicted from the units so far: those that follow can change the last ones.
            known = vocoder.predict_durations([np.asarray(taken)], np.array([0]))[0].sum()
    assert 15 <= known <= 15 + durations.max()
    # A unit arrives as a whole, so a chunk may be late by the duration of the unit it waits for.
    played = arrivals[0] + np.cumsum([0] + [len(chunk) / 320 for chunk in chunks])
    assert np.all(arrivals[1:] <= played[1:-1] + durations.max())
    whole = vocoder(recording, speaker="slt")
    error = np.concatenate(chunks) - whole
    assert np.square(error).sum() < 1e-4 * np.square(whole).sum()


def test_no_units_and_bad_units(vocoder):
    assert list(stream(vocoder, [])) == list(stream(vocoder, [[], [-1]])) == []
    with pytest.raises(ValueError, match="unit 20 is not among"):
        list(stream(vocoder, [[3], [20]]))
    with pytest.raises(ValueError, match="no speaker 'eve'"):
        stream(vocoder, [[3]], speaker="eve")
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="duration_scale"):
            stream(vocoder, [[3]], duration_scale=scale)
    with pytest.raises(UserError, match="chunk_codes"):
        stream(vocoder, [[3]], chunk_codes=0)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    sizes=st.lists(st.integers(0, 30), max_size=5),
    before=st.integers(0, 7),
    after=st.integers(0, 7),
    at_most=st.integers(1, 9),
    data=st.data(),
)
def test_sliding_windows_give_the_values_of_the_whole(sizes, before, after, at_most, data):
    at_least = data.draw(st.integers(1, at_most))
    x = np.random.default_rng(0).integers(100, size=(sum(sizes), 1))

    def sums_around(window):
        rows, number = window.rows, window.number
        assert len(rows) == before + at_most + after and not rows[number:].any()
        assert (rows[:number] == x[window.first :][:number]).all()
        assert window.mask.tolist() == [[1.0] * number + [0.0] * (len(rows) - number)]
        padded = np.pad(rows, ((before, after), (0, 0)))
        return sum(padded[i : i + len(rows)] for i in range(before + after + 1))[window.place :]

    pieces = [x[end - size : end] for size, end in zip(sizes, np.cumsum(sizes))]
    arguments = {"before": before, "after": after, "at_most": at_most, "at_least": at_least}
    values = [rows for rows, _ in sliding(sums_around, [(p, p[:0]) for p in pieces], **arguments)]
    assert all(0 < len(rows) <= at_most for rows in values)
    assert all(len(rows) >= at_least for rows in values[:-1])
    padded = np.pad(x, ((before, after), (0, 0)))
    expected = sum(padded[i : i + len(x)] for i in range(before + after + 1))
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 1)), *values]), expected)
