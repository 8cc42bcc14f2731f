"""Shipped files are found from every folder; another vocoder has another default voice."""

from speechgpt_jax import shipped


def test_shipped_files_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "speechgpt_jax/assets/tokenizer"
    assert shipped.find(name) == shipped.ASSETS / "tokenizer"
    (tmp_path / name).mkdir(parents=True)
    assert str(shipped.find(name)) == name


def test_the_default_voice_is_that_of_the_shipped_vocoder_or_the_first_speaker():
    assert shipped.default_speaker(shipped.SHIPPED_VOCODER) == shipped.SHIPPED_VOICE
    assert shipped.default_speaker(shipped.SHIPPED_VOCODER, "slt") == "slt"
    assert shipped.default_speaker("runs/vocoder", "slt") == 0
