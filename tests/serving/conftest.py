"""A server with the tiny model for all tests, and OpenAI's client of it."""

import pytest

FRIEND = "https://friend.example"


@pytest.fixture(scope="module", autouse=True)
def no_authorities(tmp_path_factory):
    """Reading the certificates of all authorities takes every HTTP client 50 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


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
