"""Conversion of weights, tokenizers and configurations from and to other frameworks."""
