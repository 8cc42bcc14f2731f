"""Optimizer, train step and the loop."""
