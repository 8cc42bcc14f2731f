"""A stand-in for flite's -psdur: one phone of 0.1 s per letter of the text, for four voices."""

import os
import sys
from pathlib import Path

import pytest

SCRIPT = f"""#!{sys.executable}
import sys
text, voice = (sys.argv[sys.argv.index(flag) + 1] for flag in ("-t", "-voice"))
if voice not in ("slt", "rms", "kal16", "awb"):
    sys.exit(f"no voice {{voice}}")
print(*(f"{{letter}}:{{0.1 * (i + 1):.3f}}" for i, letter in enumerate(text)))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the flite of this process."""
    folder.mkdir()
    (folder / "flite").write_text(SCRIPT)
    (folder / "flite").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
