"""A spoken question of the shipped corpus, and recordings in requests."""

import base64
import json

from speechgpt_jax.shipped import ASSETS

_CLIPS = ASSETS / "corpus" / "clips"
CLIP = next(
    row for row in json.loads((_CLIPS / "clips.json").read_text()) if row["kind"] == "question"
)
QUESTION = _CLIPS / CLIP["file"]


def input_audio(data: bytes) -> dict:
    """A FLAC recording as a part of a message of OpenAI's API."""
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": "flac"}}
