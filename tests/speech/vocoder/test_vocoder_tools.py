"""tools.synthesize, tools.eval_vocoder and tools.train_vocoder on a tiny vocoder."""

import json
import sys

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.vocoder.training import VocoderObjective
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.training.optimizer import AdamW
from tools import eval_vocoder, synthesize, train_vocoder

pytestmark = pytest.mark.slow

CONFIG = VocoderConfig(
    num_embeddings=6,
    embedding_dim=8,
    speakers=("ann", "bob"),
    duration_embed_dim=16,
    upsample_rates=(4,),
    upsample_kernel_sizes=(8,),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
    istft_n_fft=320,
    istft_hop_size=80,
)


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    main()


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_synthesize_writes_a_wav_a_row(tmp_path, monkeypatch):
    vocoder = UnitVocoder(CONFIG, rngs=nnx.Rngs(0))
    vocoder.save_pretrained(tmp_path / "vocoder")
    write_rows(
        tmp_path / "units.jsonl",
        [
            {"id": "a", "units": [1, 2], "durations": [3, 4], "speaker": "bob"},
            {"id": "b", "units": [5], "durations": None},
            {"path": "clips/c.flac", "units": [2, 1, 3], "durations": [1, 9, 2]},
        ],
    )
    arguments = ["--units", tmp_path / "units.jsonl", "--vocoder", tmp_path / "vocoder"]
    run(monkeypatch, synthesize.main, *arguments, "--output", tmp_path / "wavs")
    assert sorted(path.name for path in (tmp_path / "wavs").iterdir()) == [
        f"{name}.wav" for name in "abc"
    ]
    expected = vocoder([1, 2], [3, 4], speaker="bob")
    np.testing.assert_allclose(load_audio(tmp_path / "wavs" / "a.wav"), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, "units.jsonl:1: expected a JSON object with id"),
        ({"id": "good", "units": [1]}, "units.jsonl:2: an earlier row has the id 'good' too"),
        ({"id": "../a", "units": [1]}, "units.jsonl:1: expected an id that can name a file"),
        ({"id": "a", "units": ["1"]}, "units.jsonl:1: a: expected units to be a list of integers"),
        ({"id": "a", "units": [1], "durations": 3}, "1: a: expected durations to be a list"),
        ({"id": "a", "units": [1], "durations": [1, 2]}, "a: Expected for each of 1 units"),
        ({"id": "a", "units": [9]}, "a: Unit 9 is not among"),
        ({"id": "a", "units": []}, "a: Expected at least one unit"),
    ],
)
def test_synthesize_names_the_bad_row(tmp_path, monkeypatch, row, message):
    UnitVocoder(CONFIG, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "vocoder")
    write_rows(tmp_path / "units.jsonl", [row, {"id": "good", "units": [1, 2]}])
    arguments = ["--units", tmp_path / "units.jsonl", "--vocoder", tmp_path / "vocoder"]
    with pytest.raises(SystemExit, match=f"^Error: .*{message}"):
        run(monkeypatch, synthesize.main, *arguments, "--output", tmp_path / "wavs")


def train(rows, folder, **kwargs):
    return train_vocoder.train(
        rows=rows,
        output_dir=str(folder),
        model=CONFIG,
        objective=VocoderObjective(stft_sizes=(256,)),
        optimizer=AdamW(1e-3, schedule="constant"),
        batch_size=2,
        segment_codes=16,
        **kwargs,
    )


def test_training_resumed_is_training_never_stopped(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(9600), 16000)
    row = {"path": str(tmp_path / "a.wav"), "units": [1, 2, 3], "durations": [9, 9, 12]}
    rows = [row | {"speaker": "ann"}, row | {"speaker": "bob"}]
    whole = train(rows, tmp_path / "whole", steps=4)
    train(rows, tmp_path / "parts", steps=2)
    parts = train(rows, tmp_path / "parts", steps=4)
    loaded = UnitVocoder.from_pretrained(tmp_path / "parts" / "vocoder")
    for a, b, c in zip(*(jax.tree.leaves(nnx.state(v, nnx.Param)) for v in (whole, parts, loaded))):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.asarray(a, np.float16), c)
    further = train(rows, tmp_path / "further", steps=1, start_from=str(tmp_path / "parts/vocoder"))
    assert further.config == CONFIG


def test_sentences_are_packed_into_windows():
    wavs = [np.full(seconds * 16000, i, np.float32) for i, seconds in enumerate((10, 10, 10, 26))]
    windows = eval_vocoder.pack(wavs)
    assert [members for _, members in windows] == [[0, 1], [2], [3]]
    assert all(len(wav) <= 30 * 16000 for wav, _ in windows)
    assert eval_vocoder.words("What's Two, plus... two?") == "what's two plus two"
