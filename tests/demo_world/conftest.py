"""The speech command and the HuBERT of the tests of the corpus."""

from tests.corpus.conftest import small_hubert, voice  # noqa: F401
