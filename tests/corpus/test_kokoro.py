"""Phonemes are translated to Kokoro's alphabet, and only the expected model is run."""

import hashlib
import sys

import pytest

from speechgpt_jax.corpus import kokoro
from speechgpt_jax.errors import UserError

# What `espeak-ng -q -v en-us --ipa --tie=^` of Debian 12 prints for some texts.
PRINTED = {
    "hello there!": "həlˈo^ʊ ðˈɛ^ɹ\n",
    "a change of voice.": "ɐ t^ʃˈe^ɪnd^ʒ ʌv vˈɔ^ɪs\n",
    "so, five birds": "sˈo^ʊ\nfˈa^ɪv bˈɜːdz\n",
}


@pytest.fixture
def espeak(tmp_path, monkeypatch):
    """A program espeak-ng on PATH that prints these phonemes."""
    program = tmp_path / "espeak-ng"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdout.reconfigure(encoding='utf-8')\n"
        f"print({PRINTED!r}[sys.argv[-1]], end='')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    zip(PRINTED, ["həlˈO ðˈɛɹ!", "ə ʧˈAnʤ ʌv vˈYs.", "sˈO, fˈIv bˈɜɹdz"]),
)
def test_phonemes(espeak, text, expected):
    assert kokoro.phonemes(text) == expected


def test_espeak_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install espeak-ng"):
        kokoro.phonemes("hello")


def test_other_files_are_refused_before_they_run(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"part.bin can't be read .* the folder of `pip install"):
        kokoro.Kokoro(tmp_path)
    for name in (*kokoro.MODEL_PARTS, kokoro.STYLES):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"part")
    with pytest.raises(UserError, match="another model than expected"):
        kokoro.Kokoro(tmp_path)
    model = hashlib.sha256(4 * b"part").hexdigest()
    monkeypatch.setitem(kokoro.SHA256, "model", model)
    with pytest.raises(UserError, match="another voices file than expected"):
        kokoro.Kokoro(tmp_path)
