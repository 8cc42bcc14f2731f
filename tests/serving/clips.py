"""A spoken question of the embedded corpus."""

import json

from speechgpt_jax.files import ASSETS

_CLIPS = ASSETS / "corpus" / "clips"
CLIP = next(
    row for row in json.loads((_CLIPS / "clips.json").read_text()) if row["kind"] == "question"
)
QUESTION = _CLIPS / CLIP["file"]
