"""Weights, tokenizers and configurations of other frameworks, in and out."""
