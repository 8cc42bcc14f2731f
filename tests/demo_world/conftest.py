"""Fixtures of tests/corpus: the speech command and the small HuBERT."""

from tests.corpus.conftest import small_hubert, voice  # noqa: F401
