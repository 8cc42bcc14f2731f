"""Default settings of replies, which flags show without importing JAX."""

from speechgpt_jax.limits import LARGEST_INT

# Most tokens of a prompt and its reply together.
CONTEXT = 2048
# Longest reply, in tokens.
MAX_NEW_TOKENS = 384
# The values of the released SpeechGPT.
TOP_K, TOP_P = 50, 0.8
LARGEST_TOP_K = LARGEST_INT
# MiB of keys and values of earlier prompts that an engine keeps.
PREFIX_CACHE = 256
