"""Optimizer, train step and the loop."""

from speechgpt_jax import data  # noqa: F401 (imports TensorFlow before the metric writers do)
