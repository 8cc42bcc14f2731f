"""A recording of a new voice gets its own units and those of its reference, over the same time."""

import numpy as np
import pytest

from speechgpt_jax.demo_world.build import SHIPPED_CORPUS
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import read_manifest, write_jsonl
from speechgpt_jax.speech.audio import load_audio, save_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tools import reference_units


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no row of .* names a reference"),
        ({"reference": None}, "expected reference to be text, got None"),
        ({"reference": "none.wav"}, "none.wav of the manifest isn't there"),
        ({"reference": "short.wav"}, "shorter than a frame"),
    ],
)
def test_rows_without_a_usable_reference(tmp_path, row, message):
    save_audio(tmp_path / "a.wav", np.zeros(8_000, np.float32))
    save_audio(tmp_path / "short.wav", np.zeros(100, np.float32))
    write_jsonl(tmp_path / "manifest.jsonl", [{"path": "a.wav", "split": "train"} | row])
    flags = ["--manifest", str(tmp_path / "manifest.jsonl"), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        reference_units.main(flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_units_of_the_reference_are_laid_over_the_time_of_the_recording(tmp_path):
    speech2unit = Speech2Unit.from_pretrained()
    path = sorted((SHIPPED_CORPUS / "clips").glob("question-*.flac"))[0]
    wav = load_audio(path)
    # The recording begins half a second later and is the same otherwise.
    silence = np.zeros(8_000, np.float32)
    save_audio(tmp_path / "later.wav", np.concatenate([silence, wav]))
    save_audio(tmp_path / "reference.wav", wav)
    row = {"path": "later.wav", "reference": "reference.wav", "speaker": "new", "split": "train"}
    write_jsonl(tmp_path / "manifest.jsonl", [row, row | {"path": "reference.wav"}])
    output = tmp_path / "out" / "voice.jsonl"
    output.parent.mkdir()
    reference_units.main(["--manifest", str(tmp_path / "manifest.jsonl"), "--output", str(output)])

    later, laid, same, unchanged = read_manifest(output)
    assert "reference" not in later and later["speaker"] == "new"
    assert same["units"] == unchanged["units"] == speech2unit(wav)[0].tolist()
    assert later["units"] == speech2unit(load_audio(tmp_path / "later.wav"))[0].tolist()
    own, reference, at_once = (
        np.repeat(row["units"], row["durations"]) for row in (later, laid, same)
    )
    assert len(own) == len(reference)
    shift = len(own) - len(at_once)
    assert np.mean(reference[shift:] == at_once) > 0.9
