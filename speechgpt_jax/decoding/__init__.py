"""Decoding: prompts -> tokens, text and sound."""
