"""A server with the tiny model for all tests, and OpenAI's client of it."""

import pytest

FRIEND = "https://friend.example"


@pytest.fixture(scope="session")
def address():
    """A server whose API pages of FRIEND may call."""
    from tests.serving import tiny

    with tiny.serving(cors_origins=[FRIEND]) as address:
        yield address


@pytest.fixture(scope="session")
def client(address):
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client
