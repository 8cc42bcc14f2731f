"""A server with the tiny model, and OpenAI's client of it; one server per file of tests."""

import pytest


@pytest.fixture(scope="module")
def address():
    from tests.serving import tiny

    with tiny.serving() as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client
