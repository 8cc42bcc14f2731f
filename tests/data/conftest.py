"""A corpus of nonsense, written once."""

import pytest

import tasks  # noqa: F401 (registers them)
from tests.data.synthetic_corpus import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder
