"""Ahead-of-time compilation for TPUs and GPUs that aren't attached, and its report."""
