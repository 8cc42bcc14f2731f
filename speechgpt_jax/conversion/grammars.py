"""Grammars of an export: the forms of answers, for engines with llguidance, such as vLLM."""

from etils import epath

from speechgpt_jax import files
from speechgpt_jax.decoding import masks
from speechgpt_jax.tokenizer import Tokenizer


def write(tokenizer: Tokenizer, folder: epath.Path) -> None:
    """Writes `grammars/FORM.lark` into a folder for every form that the tokenizer can write."""
    (folder / "grammars").mkdir()
    for form in masks.forms(tokenizer):
        text = masks.grammar(form, tokenizer)
        files.write_text(folder / "grammars" / f"{form}.lark", text)
