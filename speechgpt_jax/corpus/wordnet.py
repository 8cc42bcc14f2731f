"""Sentences that WordNet quotes as examples, in the files of Debian's package wordnet-base."""

import os
import re

from etils import epath

from speechgpt_jax import files
from speechgpt_jax.errors import UserError


def quoted_sentences(folder: str | os.PathLike) -> list[str]:
    """The quoted sentences of 4 to 14 words of WordNet's `data.noun`, ... (wordnet-base of Debian).

    Raises:
      UserError: the folder has no such files, or they quote nothing.
    """
    texts = set()
    for part in ("noun", "verb", "adj", "adv"):
        data = files.read_bytes(epath.Path(folder) / f"data.{part}", "a file of WordNet")
        for quoted in re.findall(r'"([A-Za-z ,.\'?!]+)"', data.decode("utf-8", "replace")):
            if 4 <= len(quoted.split()) <= 14:
                texts.add(quoted)
    if not texts:
        raise UserError(f"the files of WordNet in {folder} quote no sentence.")
    return sorted(texts)
