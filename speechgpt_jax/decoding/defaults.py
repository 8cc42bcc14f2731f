"""Default settings of replies, which flags show without importing JAX."""

# Most tokens of a prompt and its reply together.
CONTEXT = 2048
# Longest reply, in tokens.
MAX_NEW_TOKENS = 384
# Those of the released SpeechGPT.
TOP_K, TOP_P = 50, 0.8
# An int32.
LARGEST_TOP_K = 2**31 - 1
# MiB of keys and values of earlier prompts that an engine keeps.
PREFIX_CACHE = 256
