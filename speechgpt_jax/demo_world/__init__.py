"""The demo world: the texts of the embedded corpus, and how the corpus is built."""
