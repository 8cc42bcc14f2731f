"""Units of perturbed recordings are stretched to the length of the original recording."""

import json

import numpy as np
import pytest

from speechgpt_jax.demo_world.build import SHIPPED_CORPUS
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import read_manifest
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.encoder.targets import retimed
from tools import perturb_units, reference_units


def test_retimed_units_last_as_long_as_the_recording():
    faster = np.array([7, 7, 8, 9, 9, 9])
    np.testing.assert_array_equal(retimed(faster, 6), faster)
    np.testing.assert_array_equal(retimed(faster, 12), [7, 7, 7, 7, 8, 8, 9, 9, 9, 9, 9, 9])
    np.testing.assert_array_equal(retimed(faster, 3), [7, 9, 9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"durations": None}, "expected durations to be a list, got None"),
        ({"durations": ["a"]}, "expected for each of 1 units a duration"),
        ({"durations": [0]}, "expected for each of 1 units a duration"),
        ({"durations": [10**12]}, "at most 90000"),
        ({"path": "none.wav"}, r"none.wav of the manifest isn't there"),
    ],
)
def test_malformed_rows_are_refused_before_anything_is_encoded(tmp_path, changes, message):
    (tmp_path / "a.wav").touch()
    manifest = tmp_path / "units.jsonl"
    row = {"path": "a.wav", "units": [3], "durations": [2]} | changes
    manifest.write_text(json.dumps(row) + "\n")
    flags = ["--manifest", str(manifest), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(UserError, match=message):
        perturb_units.main(flags)


@pytest.mark.parametrize("tool", [perturb_units, reference_units])
def test_the_output_is_not_the_input(tmp_path, tool):
    manifest = tmp_path / "units.jsonl"
    manifest.write_text("{}\n")
    with pytest.raises(UserError, match="is the input; name another file"):
        tool.main(["--manifest", str(manifest), "--output", str(tmp_path / "." / "units.jsonl")])


@pytest.mark.slow
def test_rows_of_perturbed_recordings_follow_the_original_ones(tmp_path):
    speech2unit = Speech2Unit.from_pretrained()
    rows = []
    for path in sorted((SHIPPED_CORPUS / "clips").glob("question-*.flac"))[:3]:
        units, durations = (x.tolist() for x in speech2unit(load_audio(path)))
        rows.append(
            {"path": str(path), "split": "train", "units": units, "durations": durations, "id": 1}
        )
    manifest = tmp_path / "units.jsonl"
    manifest.write_text("".join(json.dumps(r) + "\n" for r in [*rows, rows[0] | {"split": "test"}]))
    output = tmp_path / "perturbed.jsonl"
    flags = ["--manifest", manifest, "--split", "train", "--output", output]
    perturb_units.main([*map(str, flags)])

    written = read_manifest(output)
    assert len(written) == 6
    true, perturbed = written[:3], written[3:]
    assert [row["units"] for row in true] == [row["units"] for row in rows]
    by_path = {row["path"]: row for row in true}
    for row in perturbed:
        original = by_path[row["path"]]
        assert row["id"] == 1
        assert sum(row["durations"]) == sum(original["durations"])
        assert row["units"] != original["units"]
        # Another throat, but the same words: far more frames agree than the 1 in 200 of chance.
        frames, expected = (np.repeat(r["units"], r["durations"]) for r in (row, original))
        assert 0.2 < np.mean(frames == expected) < 0.95
