"""Compiling for TPU slices that aren't there, and what XLA made of a step."""
