"""A language model that listens and speaks: SpeechGPT in JAX, from a laptop to a TPU pod."""
