"""Rows of a manifest become wavs; an error names the row and the reason."""

import json

import numpy as np
import pytest
from flax import nnx

from speechgpt_jax import arguments
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from tools import synthesize

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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the tool on rows, or on the bytes of a manifest; returns the folder of wavs."""
    UnitVocoder(CONFIG, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "vocoder")

    def run(rows, *more):
        if not isinstance(rows, bytes):
            rows = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "units.jsonl").write_bytes(rows)
        flags = {"units": "units.jsonl", "vocoder": "vocoder", "output": "wavs"}
        argv = [f"--{name}={tmp_path / path}" for name, path in flags.items()]
        monkeypatch.setattr("sys.argv", ["synthesize", *argv, *more])
        with pytest.raises(SystemExit) as stop:
            arguments.run(synthesize.main)
        if stop.value.code:
            raise stop.value
        return tmp_path / "wavs"

    return run


@pytest.mark.slow
def test_writes_a_wav_for_each_row(run):
    wavs = run(
        [
            {"id": "a", "units": [1, 2], "durations": [3, 4], "speaker": "bob"},
            {"id": "b", "units": [5], "durations": None},
            {"path": "clips/c.flac", "units": [2, 1, 3], "durations": [1, 9, 2], "speaker": 1},
            {"id": 7, "units": [2, -1]},
        ]
    )
    assert sorted(path.name for path in wavs.iterdir()) == ["7.wav", "a.wav", "b.wav", "c.wav"]
    expected = UnitVocoder(CONFIG, rngs=nnx.Rngs(0))([1, 2], [3, 4], speaker="bob")
    np.testing.assert_allclose(load_audio(wavs / "a.wav"), expected, atol=1e-4)
    assert len(load_audio(wavs / "c.wav")) == 12 * 320


def test_recordings_of_the_manifest_are_not_replaced(run, tmp_path):
    (tmp_path / "wavs").mkdir()
    rows = [{"path": "wavs/a.wav", "units": [1]}, {"id": "b", "path": "wavs/b.flac", "units": [1]}]
    with pytest.raises(SystemExit, match=r"wavs/a\.wav is a recording of the manifest and would"):
        run(rows)
    with pytest.raises(SystemExit, match=r"wavs/b\.wav is a recording of the manifest and would"):
        run(
            [
                {"id": "b", "path": "c.wav", "units": [1]},
                {"path": "wavs/b.wav", "id": 3, "units": [1]},
            ]
        )
    assert not list((tmp_path / "wavs").iterdir())


@pytest.mark.slow
def test_lines_end_only_at_newlines(run):
    """U+2028 and U+0085 within a text, a byte order mark, blank lines, CRLF."""
    text = "one\u2028two\u0085three"
    rows = [{"id": name, "text": text, "units": [unit]} for unit, name in enumerate("abc")]
    a, b, c = (json.dumps(row, ensure_ascii=False) for row in rows)
    wavs = run(f"\ufeff{a}\n\n{b}\r\n  \r\n{c}".encode())
    assert sorted(path.name for path in wavs.iterdir()) == ["a.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, "units.jsonl:1: expected a JSON object with id"),
        ([1, 2], "units.jsonl:1: expected a JSON object"),
        ({"id": "good", "units": [1]}, "units.jsonl:2: an earlier row has the id 'good' too"),
        ({"id": "../a", "units": [1]}, "units.jsonl:1: expected an id that can name a file"),
        ({"id": "a\0b", "units": [1]}, "units.jsonl:1: expected an id that can name a file"),
        ({"id": ["a"], "units": [1]}, "units.jsonl:1: expected an id that can name a file"),
        ({"id": True, "units": [1]}, "units.jsonl:1: expected an id that can name a file"),
        ({"path": 3, "units": [1]}, "units.jsonl:1: expected a path that is text"),
        ({"id": "a", "units": ["1"]}, "units.jsonl:1: a: expected units to be a list of integers"),
        ({"id": "a", "units": [1.5]}, "units.jsonl:1: a: expected units to be a list of integers"),
        ({"id": "a", "units": [float("nan")]}, "1: a: expected units to be a list of integers"),
        ({"id": "a", "units": [9]}, "1: a: unit 9 is not among the vocoder's 6"),
        ({"id": "a", "units": [10**30]}, "1: a: expected at least one unit"),
        ({"id": "a", "units": []}, "1: a: expected at least one unit"),
        ({"id": "a", "units": [-1]}, "1: a: expected at least one unit"),
        ({"id": "a", "units": [1], "durations": 3}, "1: a: expected durations to be a list"),
        ({"id": "a", "units": [1], "durations": [1, 2]}, "1: a: expected for each of 1 units"),
        ({"id": "a", "units": [1], "durations": [0]}, "1: a: expected for each of 1 units"),
        ({"id": "a", "units": [1], "speaker": "eve"}, "1: a: the vocoder has no speaker 'eve'"),
        ({"id": "a", "units": [1], "speaker": 2}, "expected one of ann, bob or an index"),
        ({"id": "a", "units": [1], "speaker": "9"}, "the vocoder has no speaker 9"),
        ({"id": "a", "units": [1], "speaker": 0.5}, "the vocoder has no speaker 0.5"),
        ({"id": "a", "units": [1], "speaker": True}, "the vocoder has no speaker True"),
    ],
)
def test_names_the_bad_row_before_anything_is_written(run, tmp_path, row, message):
    with pytest.raises(SystemExit, match=f"^Error: .*{message}"):
        run([row, {"id": "good", "units": [1, 2]}])
    assert not (tmp_path / "wavs").exists()


@pytest.mark.parametrize("value", ["0", "1e-9", "nan", "-1", "inf", "fast", ""])
def test_refuses_a_scale_of_durations(run, value):
    with pytest.raises(SystemExit, match=r"^Error: argument --duration_scale: expected"):
        run([{"id": "a", "units": [1]}], f"--duration_scale={value}")


def test_refuses_durations_that_the_scale_makes_too_long(run, tmp_path):
    with pytest.raises(SystemExit, match=r"^Error: .*1: a: .* 100000 codes .* at most 90000"):
        run([{"id": "a", "units": [1], "durations": [1000]}], "--duration_scale=100")
    assert not (tmp_path / "wavs").exists()


def test_refuses_an_empty_manifest(run):
    with pytest.raises(SystemExit, match=r"^Error: .*units.jsonl has no rows"):
        run(b"\n")


def test_refuses_an_output_that_is_a_file(run, tmp_path):
    (tmp_path / "wavs").write_text("")
    with pytest.raises(SystemExit, match=r"^Error: .*wavs"):
        run([{"id": "a", "units": [1]}])
