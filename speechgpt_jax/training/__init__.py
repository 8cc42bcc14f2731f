"""Training: optimizer, train step and loop."""

from speechgpt_jax import data  # noqa: F401 (imports TensorFlow before the metric writers do)
