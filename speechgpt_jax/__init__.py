"""A language model that listens and speaks: SpeechGPT in JAX, from a laptop to a TPU pod."""

import os

from speechgpt_jax.platforms import avoid_absent_tpu

# TensorFlow's C++ start-up messages would bury ours; it reads this when it is first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
avoid_absent_tpu()
