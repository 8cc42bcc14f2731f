"""A server with a key, that takes few and small requests."""

import contextlib
from collections.abc import Iterator

import httpx2

from speechgpt_jax.serving.limits import Limits
from tests.serving import tiny

KEY = "secret"
ORIGIN = "https://friend.example"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": tiny.SUM}]}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Its address."""
    limits = Limits(audio_seconds=5, body_bytes=200_000, waiting=0, seconds=20)
    with tiny.serving(limits=limits, api_key=KEY, cors_origins=[ORIGIN]) as address:
        yield address


def post(address: str, path: str = "/v1/chat/completions", key: str = KEY, **options):
    """The reply to a request with a key."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{address}{path}", headers=headers, **{"timeout": 30, **options})


def answer(client) -> str:
    """The answer to BODY by OpenAI's client."""
    return client.chat.completions.create(**BODY).choices[0].message.content
