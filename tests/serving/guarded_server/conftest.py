"""A server with a key for the tests of each file, and OpenAI's client of it."""

import pytest


@pytest.fixture(scope="module")
def address():
    from tests.serving.guarded_server import guarded

    with guarded.serving() as address:
        yield address


@pytest.fixture
def client(address):
    import openai

    from tests.serving.guarded_server.guarded import KEY

    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client
