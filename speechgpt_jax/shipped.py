"""Files of the package: tokenizer, encoder, vocoder, language model and corpus of the demo."""

import os

from etils import epath

ASSETS = epath.resource_path("speechgpt_jax") / "assets"
# The language model: an adapter on assets/model/base, as packed runs.
SHIPPED_MODEL = str(ASSETS / "model" / "chat")
# The HuBERT with its centroids, and the unit vocoder with its clearest voice.
SHIPPED_HUBERT = str(ASSETS / "hubert")
SHIPPED_VOCODER = str(ASSETS / "vocoder")
SHIPPED_VOICE = "jm_kumo"


def find(path: str | os.PathLike) -> epath.Path:
    """`path`, or, if it does not exist, the file of that name in the installed package.

    Thus `speechgpt_jax/assets/tokenizer` is found from every working folder.
    """
    found = epath.Path(path)
    if found.parts[:2] == ("speechgpt_jax", "assets") and not found.exists():
        return ASSETS.joinpath(*found.parts[2:])
    return found


def default_speaker(vocoder: str | os.PathLike, voice: str = SHIPPED_VOICE) -> int | str:
    """`voice` of the shipped vocoder; the first speaker of a vocoder in another folder."""
    return voice if os.fspath(vocoder) == SHIPPED_VOCODER else 0
