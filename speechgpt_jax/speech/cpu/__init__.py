"""Faster forms of models on a CPU."""
