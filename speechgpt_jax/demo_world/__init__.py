"""The demo world: the texts of the shipped corpus, and how the corpus is built."""
