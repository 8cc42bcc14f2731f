"""The script for an accelerator runs here at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import measure_accelerator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_it_needs_no_tensorflow():
    without = "import sys; sys.modules['tensorflow'] = None"
    program = f"{without}; import tests.benchmarks.measure_accelerator"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_part_has_results(tmp_path):
    output = tmp_path / "results.json"
    measure_accelerator.main([f"--output={output}", "--tiny"])
    results = json.loads(output.read_text())
    parts = {name: part for name, part in results.items() if isinstance(part, dict)}
    assert len(parts) == 6 and not [part for part in parts.values() if "error" in part], results
    same = {}
    for name, part in parts.items():
        if name.startswith("difference"):
            del part["seconds"]
            same |= part
    assert len(same) == 6 + 4 + 3 and max(same.values()) < 1e-6
    assert parts["training, tiny"]["tokens per second"] > 0
    assert parts["decoding, tiny"]["tokens per second, 2 at once"] > 0


def test_what_does_not_fit_into_the_time_is_named(tmp_path):
    output = tmp_path / "results.json"
    report = measure_accelerator.Report(output, minutes=0)
    report.add("training", dict)
    assert json.loads(output.read_text())["training"]["left out"] == "the time was over"


def test_a_part_that_fails_leaves_its_error(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    report = measure_accelerator.Report(tmp_path / "results.json", minutes=1)
    report.add("training", fail)
    report.add("decoding", lambda: {"tokens per second": 1})
    results = json.loads((tmp_path / "results.json").read_text())
    assert "out of memory" in results["training"]["error"]
    assert results["decoding"]["tokens per second"] == 1
