"""Lengths of dialogues like those of SpeechInstruct, the same in all benchmarks."""

import numpy as np

LONGEST = 512


def dialogue_lengths(count: int, at_least: int = 1) -> np.ndarray:
    """Numbers of tokens [count]: log-normal with median 180, from `at_least` to LONGEST."""
    lengths = np.random.default_rng(0).lognormal(np.log(180), 0.6, count)
    return np.clip(lengths, at_least, LONGEST).astype(int)
